import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from pipeline.config import StorageConfig
from pipeline.errors import StorageError
from pipeline.storage import Store
from pipeline.storage_faults import storage_errors


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), StorageConfig())


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(StorageError) as caught:
        call()
    return str(caught.value)


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(store: Store, uri: str) -> list[str]:
    return [os.path.basename(f.uri) for f in store.find(uri)]


def test_put_makes_folders_and_tells_what_it_wrote(store: Store, tmp_path: Path) -> None:
    uri = str(tmp_path / "a" / "b.json")
    info = store.put(uri, b"abc")
    assert (info.uri, info.size) == (uri, 3)
    assert info == store.stat(uri)
    assert store.read(uri) == b"abc"
    assert os.listdir(tmp_path / "a") == ["b.json"]


def test_remove_folder_takes_all_that_is_below_it_and_nothing_beside(store: Store, tmp_path: Path) -> None:
    fill(tmp_path, "a/b/c", "a/d", "ab/e")
    for _ in range(2):
        store.remove_folder(str(tmp_path / "a"))
        assert os.listdir(tmp_path) == ["ab"]


def test_put_replaces_what_stood_there(store: Store, tmp_path: Path) -> None:
    uri = str(tmp_path / "a")
    store.put(uri, b"old content")
    store.put(uri, b"new")
    assert store.read(uri) == b"new"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_put_that_fails_leaves_the_old_and_nothing_else(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    uri = str(tmp_path / "a")
    store.put(uri, b"old")

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"pipeline.storage.os.{call}", fail)
    message = refused(lambda: store.put(uri, b"new content"))
    assert message == f"The disk is full ({uri}). Make room, then run again."
    assert Path(uri).read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_put_that_is_interrupted_leaves_the_old_and_nothing_else(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "a")
    store.put(uri, b"old")

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.storage.os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        store.put(uri, b"new")
    assert Path(uri).read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_find_file_gives_it_whatever_its_name(store: Store, tmp_path: Path) -> None:
    fill(tmp_path, "_a.bin")
    assert names(store, str(tmp_path / "_a.bin")) == ["_a.bin"]


def test_find_glob_gives_matches_by_name(store: Store, tmp_path: Path) -> None:
    fill(tmp_path, "b.parquet", "a.parquet", "c.json", "sub/d.parquet")
    assert names(store, f"{tmp_path}/*.parquet") == ["a.parquet", "b.parquet"]
    assert names(store, f"{tmp_path}/**/*.parquet") == ["a.parquet", "b.parquet", "d.parquet"]
    assert names(store, f"{tmp_path}/[a]*") == ["a.parquet"]


@pytest.mark.parametrize("end", ["", "/"])
def test_find_folder_gives_its_parquet_files_at_any_depth(store: Store, tmp_path: Path, end: str) -> None:
    fill(tmp_path, "b.parquet", "a.parquet", "c.json", "sub/d.parquet")
    assert names(store, f"{tmp_path}{end}") == ["a.parquet", "b.parquet", "d.parquet"]


@pytest.mark.parametrize("pattern", ["", "/*"])
def test_find_skips_hidden_names(store: Store, tmp_path: Path, pattern: str) -> None:
    fill(tmp_path, "a.parquet", "_b.parquet", ".c.parquet", "_SUCCESS")
    assert names(store, f"{tmp_path}{pattern}") == ["a.parquet"]


def test_find_skips_what_lies_in_hidden_folders(store: Store, tmp_path: Path) -> None:
    """What a stopped Spark job leaves under `_temporary` is no input."""
    fill(tmp_path, "a.parquet", "_temporary/0/b.parquet", ".ipynb_checkpoints/c.parquet", "d/_old/e.parquet")
    assert names(store, str(tmp_path)) == ["a.parquet"]


def test_find_folder_that_lies_in_a_hidden_one_is_read(store: Store, tmp_path: Path) -> None:
    fill(tmp_path, "_work/data/a.parquet")
    assert names(store, str(tmp_path / "_work" / "data")) == ["a.parquet"]


def test_find_nothing_at_address_refused(store: Store, tmp_path: Path) -> None:
    uri = str(tmp_path / "none.parquet")
    assert refused(lambda: store.find(uri)) == (
        f"There is nothing at this address ({uri}). Check the spelling, the endpoint and the region."
    )


@pytest.mark.parametrize("pattern", ["*.parquet", "part-?.parquet", "part-[0-9].parquet"])
def test_find_pattern_without_match_refused(store: Store, tmp_path: Path, pattern: str) -> None:
    message = refused(lambda: store.find(f"{tmp_path}/{pattern}"))
    assert message.startswith(f"No file matches this pattern ({tmp_path}/{pattern}). Check the spelling")


@pytest.mark.parametrize("present", [[], ["a.csv"], ["_a.parquet"]])
def test_find_folder_without_parquet_refused(store: Store, tmp_path: Path, present: list[str]) -> None:
    fill(tmp_path, *present)
    message = refused(lambda: store.find(str(tmp_path)))
    assert message.startswith(f"This folder holds no .parquet file ({tmp_path}).")


def test_find_file_with_brackets_in_its_name_gives_it(store: Store, tmp_path: Path) -> None:
    fill(tmp_path, "part[1].parquet")
    assert names(store, str(tmp_path / "part[1].parquet")) == ["part[1].parquet"]


def test_list_folder_gives_files_only_by_name(store: Store, tmp_path: Path) -> None:
    fill(tmp_path, "b", "a", "sub/c")
    assert [os.path.basename(f.uri) for f in store.list_folder(str(tmp_path))] == ["a", "b"]


def test_list_folder_that_is_missing_is_empty(store: Store, tmp_path: Path) -> None:
    assert store.list_folder(str(tmp_path / "none")) == []


@pytest.mark.parametrize("method", ["stat", "read", "find"])
def test_permission_refused_with_advice(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", "a")

    for name in ("info", "cat_file"):
        monkeypatch.setattr(f"fsspec.implementations.local.LocalFileSystem.{name}", refuse)
    uri = str(tmp_path / "a")
    message = refused(lambda: getattr(store, method)(uri))
    assert message.startswith("The store refuses access: [Errno 13] Permission denied")
    assert f"({uri}). Check the permissions of the file and its folders." in message


def test_permission_refused_on_s3_speaks_of_credentials() -> None:
    def call() -> None:
        with storage_errors("s3://b/k"):
            raise PermissionError("Access Denied")

    assert refused(call) == (
        "The store refuses access: Access Denied (s3://b/k). "
        "Check that the credentials are right and may read (inputs) or write (outputs) here."
    )


def test_missing_credentials_say_what_to_set() -> None:
    def call() -> None:
        with storage_errors("s3://b/k"):
            raise NoCredentialsError

    message = refused(call)
    assert message.startswith("No credentials were found for the store (s3://b/k). Set AWS_ACCESS_KEY_ID and")
    assert "`storage: {anonymous: true}`" in message


def test_missing_bucket_is_named_so() -> None:
    def call() -> None:
        with storage_errors("s3://b/k"):
            raise FileNotFoundError("The specified bucket does not exist")

    assert refused(call).startswith("The bucket does not exist (s3://b/k).")


def test_missing_key_in_a_bucket_of_that_name_is_no_missing_bucket() -> None:
    def call() -> None:
        with storage_errors("s3://my-bucket/k"):
            raise FileNotFoundError("my-bucket/k")

    assert refused(call).startswith("There is nothing at this address (s3://my-bucket/k).")


def test_endpoint_out_of_reach_says_so() -> None:
    def call() -> None:
        with storage_errors("s3://b/k"):
            raise EndpointConnectionError(endpoint_url="http://localhost:9")

    assert refused(call).startswith("The store failed: Could not connect to the endpoint URL")


def test_storage_error_keeps_its_cause_and_long_texts_short() -> None:
    cause = OSError("x" * 1000)
    with pytest.raises(StorageError) as caught, storage_errors("a"):
        raise cause
    assert caught.value.__cause__ is cause
    assert len(str(caught.value)) < 400


def test_unknown_protocol_refused() -> None:
    message = refused(lambda: Store("nosuch://a", StorageConfig()))
    assert message.startswith("`nosuch://` is not a storage known here")


def test_etag_changes_when_the_file_does(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 10**18))
    first = store.stat(str(path)).etag
    assert store.stat(str(path)).etag == first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 10**18 + 1))
    second = store.stat(str(path)).etag
    path.write_bytes(b"three")
    os.utime(path, ns=(0, 10**18 + 1))
    assert len({first, second, store.stat(str(path)).etag}) == 3


def test_etag_is_the_same_by_every_way_of_asking(store: Store, tmp_path: Path) -> None:
    fill(tmp_path, "a.parquet")
    uri = str(tmp_path / "a.parquet")
    assert store.stat(uri) == store.find(uri)[0] == store.find(str(tmp_path))[0] == store.list_folder(str(tmp_path))[0]


def test_remove_takes_away_and_is_content_when_nothing_is_there(store: Store, tmp_path: Path) -> None:
    fill(tmp_path, "a")
    store.remove(str(tmp_path / "a"))
    store.remove(str(tmp_path / "a"))
    assert not store.exists(str(tmp_path / "a"))


def test_read_many_keeps_order(store: Store, tmp_path: Path) -> None:
    uris = [str(tmp_path / str(n)) for n in range(50)]
    for n, uri in enumerate(uris):
        Path(uri).write_bytes(str(n).encode())
    assert store.read_many(uris) == [str(n).encode() for n in range(50)]


def test_open_reads_any_part(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with store.open(str(tmp_path / "a")) as f:
        f.seek(4)
        assert f.read(3) == b"456"


def test_open_missing_refused(store: Store, tmp_path: Path) -> None:
    assert "There is nothing at this address" in refused(lambda: store.open(str(tmp_path / "none")))


@pytest.mark.parametrize("uri", ["s3://b/k", "b/k", "/b/k", "file:///b/k"])
def test_store_knows_whether_it_is_local(uri: str) -> None:
    assert Store(uri, StorageConfig(anonymous=True)).is_local is not uri.startswith("s3")


def test_file_uri_and_plain_path_are_one_place(store: Store, tmp_path: Path) -> None:
    other = Store(f"file://{tmp_path}", StorageConfig())
    other.put(f"file://{tmp_path}/a", b"x")
    assert store.read(str(tmp_path / "a")) == b"x"
