import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import jobs.demo
from pipeline import model as model_module
from pipeline.config import StorageConfig
from pipeline.errors import ConfigError
from pipeline.model import cache_folder, check_files, digest_files, inspect_local, localise, read_template

DEMO = Path(str(jobs.demo.__file__)).parent / "model"
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_files(folder)
    message = str(caught.value)
    assert str(folder) in message
    return message


def flip(path: Path, at: int = -1) -> None:
    """Changes one byte, and the time of the change with it."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def shard_weights(folder: Path, *names: str) -> None:
    """Turns the model into one with an index that lists these files."""
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    for name in names:
        (folder / name).write_bytes(whole)
    index = {"weight_map": {f"tensor{n}": name for n, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_check_files_whole_model_passes(folder: Path) -> None:
    check_files(folder)


def test_check_files_no_folder_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == f"The model's folder does not exist ({tmp_path / 'none'})."


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json"], "The model has no config.json"),
        ([WEIGHTS], "The model has no .safetensors weights (pickled weights are not loaded)"),
        (["tokenizer.json", "tokenizer_config.json"], "The model has no tokenizer files"),
        (["chat_template.jinja"], "The model has no chat template (chat_template.jinja, or in tokenizer_config.json)"),
    ],
)
def test_check_files_missing_file_refused(folder: Path, names: list[str], message: str) -> None:
    for name in names:
        (folder / name).unlink()
    assert refused(folder) == f"{message} ({folder}). Download or copy the model again."


def test_check_files_weights_cut_short_refused_with_sizes(folder: Path) -> None:
    path = folder / WEIGHTS
    size = path.stat().st_size
    with path.open("r+b") as f:
        f.truncate(size - 10)
    assert f"Weight file {WEIGHTS} has {size - 10:,} bytes and its header says {size:,}" in refused(folder)


def test_check_files_weights_too_long_refused(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as f:
        f.write(b"x")
    assert f"Weight file {WEIGHTS} has" in refused(folder)


@pytest.mark.parametrize("where", ["nothing", "length", "header", "before_header_end", "header_end"])
def test_check_files_weights_cut_in_their_header_refused(folder: Path, where: str) -> None:
    path = folder / WEIGHTS
    length = int.from_bytes(path.read_bytes()[:8], "little")
    keep = {"nothing": 0, "length": 5, "header": 100, "before_header_end": length + 3, "header_end": length + 8}[where]
    with path.open("r+b") as f:
        f.truncate(keep)
    assert f"Weight file {WEIGHTS} has {keep:,} bytes" in refused(folder)


def test_check_files_pointer_instead_of_weights_refused(folder: Path) -> None:
    """What a clone without Git LFS leaves."""
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1942896\n")
    assert f"Weight file {WEIGHTS} has" in refused(folder)


def test_check_files_indexed_weights_pass_when_whole(folder: Path) -> None:
    shard_weights(folder, "a-1.safetensors", "a-2.safetensors")
    check_files(folder)


def test_check_files_indexed_weights_missing_are_counted(folder: Path) -> None:
    shard_weights(folder, "a-1.safetensors", "a-2.safetensors", "a-3.safetensors")
    for name in ("a-2.safetensors", "a-3.safetensors"):
        (folder / name).unlink()
    assert "2 of the model's 3 weight files are missing, first a-2.safetensors" in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_check_files_broken_index_refused(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refused(folder)


def test_template_stands_in_its_own_file(folder: Path) -> None:
    assert read_template(folder) == (DEMO / "chat_template.jinja").read_text()


def test_template_may_stand_in_json_file(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text('{"chat_template": "x"}')
    assert read_template(folder) == '{"chat_template": "x"}'


@pytest.mark.parametrize(
    ("value", "expected"),
    [("{{ messages }}", "{{ messages }}"), ([{"name": "rag", "template": "x"}], '[{"name": "rag", "template": "x"}]')],
)
def test_template_may_stand_in_tokenizer_config(folder: Path, value: object, expected: str) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    assert read_template(folder) == expected


def test_template_nowhere_is_none(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None


def test_inspect_local_tells_what_the_model_is(folder: Path) -> None:
    ref = inspect_local("demo", folder, "MIT")
    assert (ref.name, ref.location, ref.licence) == ("demo", str(folder), "MIT")
    assert all(str(d).startswith("sha256:") for d in ref.digests.values())
    assert ref.to_json()["weights_digest"] == ref.digests["weights"]


def test_digest_is_of_content_and_not_of_place(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert inspect_local("a", folder).digests == inspect_local("a", other).digests


@pytest.mark.parametrize(
    ("name", "digest"), [(WEIGHTS, "weights"), ("tokenizer.json", "tokenizer"), ("chat_template.jinja", "template")]
)
def test_digest_changes_with_one_byte(folder: Path, name: str, digest: str) -> None:
    before = inspect_local("a", folder).digests
    flip(folder / name)
    after = inspect_local("a", folder).digests
    assert {k for k in before if before[k] != after[k]} == {digest}


def test_digest_changes_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert digest_files([tmp_path / "a"]) != digest_files([tmp_path / "b"])


def test_digest_does_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_text(file.name)
    assert digest_files(files) == digest_files(files[::-1])


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read to be hashed."""
    names: list[str] = []
    real: Callable[[Path], str] = model_module._sha256_of

    def noted(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(model_module, "_sha256_of", noted)
    return names


def test_digest_cache_spares_reading_again(folder: Path, cache: Path, hashed: list[str]) -> None:
    first = digest_files([folder / WEIGHTS])
    second = digest_files([folder / WEIGHTS])
    assert (first, hashed) == (second, [WEIGHTS])
    assert [p.name for p in cache.iterdir()] == ["digests.json"]


def test_digest_cache_notices_a_change(folder: Path, hashed: list[str]) -> None:
    first = digest_files([folder / WEIGHTS])
    flip(folder / WEIGHTS)
    assert digest_files([folder / WEIGHTS]) != first
    assert hashed == [WEIGHTS, WEIGHTS]


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_digest_cache_that_is_broken_is_replaced(folder: Path, cache: Path, text: str) -> None:
    cache.mkdir()
    (cache / "digests.json").write_text(text)
    digest = digest_files([folder / WEIGHTS])
    assert digest.startswith("sha256:")
    assert len(json.loads((cache / "digests.json").read_text())) == 1


def test_digest_cache_that_cannot_be_written_is_done_without(folder: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert digest_files([folder / WEIGHTS]).startswith("sha256:")


def test_cache_folder_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("HERD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "herd"


@pytest.mark.parametrize("location", ["meta-llama/Llama-4-Scout-17B-16E-Instruct", "/models/scout"])
def test_localise_leaves_hub_ids_and_folders(location: str) -> None:
    assert localise(location, StorageConfig()) == location
