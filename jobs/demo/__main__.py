"""The demo: `herd run` on the demo's job file, then `herd verify`; with `--s3` through a real S3 server on this machine.

python -m jobs.demo [--s3]
"""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from jobs.cli import cli
from pipeline.errors import HerdError

HERE = Path(__file__).parent
ROOT = Path("out/s3")
BUCKET = "herd-demo"


@click.command()
@click.option("--s3", "with_s3", is_flag=True, help="Keep input and output in an S3 server that runs for the demo.")
def demo(with_s3: bool) -> None:
    """Label 1,797 handwritten digits, and quarantine the four broken rows among them."""
    os.chdir(HERE.parent.parent)
    if not with_s3:
        _run([], "out/digits", [])
        return
    with s3_server(ROOT) as endpoint_url:
        settings = [
            f"input.uri=s3://{BUCKET}/digits/*.parquet",
            f"output.uri=s3://{BUCKET}/labels/digits",
            f"input.storage.endpoint_url={endpoint_url}",
            f"output.storage.endpoint_url={endpoint_url}",
        ]
        _run(
            [o for s in settings for o in ("--set", s)],
            f"s3://{BUCKET}/labels/digits",
            ["--endpoint-url", endpoint_url],
        )
    click.echo(f"The server has stopped; look at its objects with: herd show {ROOT / BUCKET}/labels/digits")


def _run(overrides: list[str], output: str, reach: list[str]) -> None:
    cli.main(["run", str(HERE.relative_to(Path.cwd()) / "digits.yaml"), *overrides], standalone_mode=False)
    click.echo(f"$ herd verify {output}")
    try:
        cli.main(["verify", output, *reach], standalone_mode=False)
    except SystemExit as e:  # its exit code is the verdict
        if e.code:
            raise


@contextlib.contextmanager
def s3_server(root: Path) -> Iterator[str]:
    """`rclone serve s3` over a folder, with the demo's data in its bucket and fresh credentials in the environment;
    gives its endpoint."""
    import s3fs

    binary = Path(sys.executable).parent / "rclone"
    if not binary.is_file():
        raise HerdError("rclone is not installed", where=str(binary), todo="Run `make venv`.")
    key, secret = "herd-demo-key", secrets.token_hex(16)
    os.environ.update(
        AWS_ACCESS_KEY_ID=key,
        AWS_SECRET_ACCESS_KEY=secret,
        AWS_RESPONSE_CHECKSUM_VALIDATION="when_required",
        AWS_REQUEST_CHECKSUM_CALCULATION="when_required",
    )
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    bucket = root / BUCKET
    bucket.mkdir(parents=True, exist_ok=True)
    command = [str(binary), "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key},{secret}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for_port(port, server)
        endpoint_url = f"http://127.0.0.1:{port}"
        fs = s3fs.S3FileSystem(endpoint_url=endpoint_url, skip_instance_cache=True, use_listings_cache=False)
        for file in sorted((HERE / "data").glob("*.parquet")):
            target = f"{BUCKET}/digits/{file.name}"
            if not fs.exists(target):
                fs.put_file(str(file), target)
        yield endpoint_url
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_for_port(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise HerdError("The S3 server did not start", where=f"port {port}")


if __name__ == "__main__":
    try:
        demo(standalone_mode=False)
    except HerdError as e:
        click.echo(f"Error: {e}", err=True)
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
