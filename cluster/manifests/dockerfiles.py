"""The recipes of Herd's images, as files in the package. They are built from the repository's root."""

from importlib import resources


def dockerfile(kind: str) -> str:
    """The text of the recipe for `gpu` or `cpu`."""
    return (resources.files("cluster.manifests") / "images" / f"{kind}.Dockerfile").read_text()
