"""Input and output on S3, against two servers: moto (checks no credentials) and rclone (does)."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml

from jobs.jobfile import load_job
from jobs.launch import Launch, run_job
from pipeline.config import StorageConfig
from pipeline.storage import Store
from tests.conftest import REPOSITORY, S3, S3_ENVIRONMENT, Herd, Outcome
from tests.ray.helpers import assert_ended, png

SECRETS = (S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"], S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"])


@dataclass(frozen=True)
class Bucket:
    """A folder of its own in the servers' bucket."""

    server: S3
    prefix: str

    @property
    def fs(self) -> Any:
        return s3fs.S3FileSystem(
            endpoint_url=self.server.endpoint_url, use_listings_cache=False, skip_instance_cache=True
        )

    def uri(self, name: str) -> str:
        return f"s3://{self.path(name)}"

    def path(self, name: str) -> str:
        return f"bucket/{self.prefix}/{name}"

    def put(self, name: str, data: bytes) -> None:
        self.fs.pipe_file(self.path(name), data)

    def files(self, name: str) -> dict[str, bytes]:
        """Contents of all objects below a folder, by their names relative to it."""
        fs = self.fs
        root = self.path(name)
        return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in sorted(fs.find(root))}

    def rows(self, name: str) -> list[dict[str, Any]]:
        parts = [d for n, d in self.files(name).items() if n.endswith(".parquet")]
        return [row for part in parts for row in pq.read_table(pa.BufferReader(part)).to_pylist()]


def parquet(first: int, count: int, **columns: Any) -> bytes:
    numbers = range(first, first + count)
    out = pa.BufferOutputStream()
    ids = {"id": [f"row-{i:05d}" for i in numbers], "text": [f"question {i}" for i in numbers]}
    pq.write_table(pa.table({**ids, **columns}), out, row_group_size=10)
    return out.getvalue().to_pybytes()


def job_of(bucket: Bucket, **sections: Any) -> dict[str, Any]:
    storage = bucket.server.storage()
    return {
        "name": "s3",
        "input": {"uri": bucket.uri("in/*.parquet"), "storage": storage},
        "prompt": {"user": "{{ text }}"},
        "engine": {"kind": "echo"},
        "output": {"uri": bucket.uri("out"), "storage": storage},
        **sections,
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(job: dict[str, Any]) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    return write


def command(*args: object, **environment: str | None) -> Outcome:
    """`herd ARGS...` in a process of its own, whose environment has these changes: stores keep their credentials as long
    as their process lives."""
    env = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    line = [sys.executable, "-m", "jobs", *map(str, args)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY, env=env, timeout=120, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def finished_s3(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """Two input files of 20 rows in groups of 10, each row with an image of its own on S3 (row 7's is not there), and
    the finished run over them. Tests leave it as it is."""
    bucket = Bucket(s3, "finished")
    for i in range(40):
        if i != 7:
            bucket.put(f"images/{i}.png", png())
    for n in range(2):
        uris = [bucket.uri(f"images/{i}.png") for i in range(n * 20, n * 20 + 20)]
        bucket.put(f"in/part-{n}.parquet", parquet(n * 20, 20, image=uris))
    job = job_of(bucket, limits={"max_quarantined_fraction": 0.1})
    job["input"]["images"] = ["image"]
    path = tmp_path_factory.mktemp("s3") / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    run_job(load_job(str(path)), Launch(quiet=True))
    return bucket


def test_run_from_s3_to_s3_answers_every_row_and_fetches_its_image(finished_s3: Bucket) -> None:
    rows = finished_s3.rows("out/data")
    assert [r["id"] for r in rows] == [f"row-{i:05d}" for i in range(40) if i != 7]
    assert all(r["response"] == r["text"] for r in rows)
    assert {r["lineage"]["input_uri"] for r in rows} == {finished_s3.uri(f"in/part-{n}.parquet") for n in range(2)}
    assert "image" not in rows[0]
    assert sorted(finished_s3.files("out/commits")) == [f"{n:06d}.json" for n in range(4)]
    assert json.loads(finished_s3.files("out")["_SUCCESS"])["rows_ok"] == 39


def test_run_with_an_image_missing_on_s3_quarantines_its_row(finished_s3: Bucket) -> None:
    (row,) = finished_s3.rows("out/quarantine")
    assert (row["id"], row["stage"], row["error_type"]) == ("row-00007", "image", "image_missing")
    assert finished_s3.uri("images/7.png") in row["message"]


def test_run_on_s3_records_the_etags_of_the_store(finished_s3: Bucket) -> None:
    etags = {f"s3://{d['name']}": d["ETag"].strip('"') for d in finished_s3.fs.find("bucket", detail=True).values()}
    for record in map(json.loads, finished_s3.files("out/commits").values()):
        stored = record["data"]
        assert stored["etag"] == etags[finished_s3.uri(f"out/{stored['uri']}")]
    rows = finished_s3.rows("out/data")
    assert all(r["lineage"]["input_etag"] == etags[r["lineage"]["input_uri"]] for r in rows)


def test_run_on_s3_leaves_credentials_in_none_of_its_files(finished_s3: Bucket) -> None:
    files = finished_s3.files("out")
    assert len(files) == 13
    for name, content in files.items():
        for secret in SECRETS:
            assert secret.encode() not in content, name


def test_commands_on_s3_say_no_credentials(finished_s3: Bucket, herd: Herd) -> None:
    store = ["--endpoint-url", finished_s3.server.endpoint_url]
    for args in (["status"], ["show"], ["show", "--quarantine"], ["verify"], ["status", "--json"]):
        outcome = herd(*args, finished_s3.uri("out"), *store)
        assert outcome.code == 0, outcome
        assert not any(secret in outcome.out + outcome.err for secret in SECRETS)


def test_verify_on_s3_of_an_object_that_was_put_again_says_so(finished_s3: Bucket, herd: Herd) -> None:
    store = ["--endpoint-url", finished_s3.server.endpoint_url, "--json"]
    sound = herd("verify", finished_s3.uri("out"), *store)
    assert (sound.code, json.loads(sound.out)["complete"]) == (0, True)
    name = "out/data/part-000003.parquet"
    kept = finished_s3.fs.cat_file(finished_s3.path(name))
    try:
        rewritten = pa.BufferOutputStream()
        pq.write_table(pq.read_table(pa.BufferReader(kept)), rewritten, compression="none")
        finished_s3.put(name, rewritten.getvalue().to_pybytes())
        outcome = herd("verify", finished_s3.uri("out"), *store)
    finally:
        finished_s3.put(name, kept)
    assert outcome.code == 4
    assert json.loads(outcome.out)["problems"] == [
        "shard 000003: data/part-000003.parquet is not the object that was committed"
    ]


@pytest.mark.parametrize("section", ["input", "output"])
def test_run_with_a_bucket_that_is_missing_is_refused_with_its_uri(
    finished_s3: Bucket, herd: Herd, write: Callable[[dict[str, Any]], Path], section: str
) -> None:
    job = job_of(finished_s3)
    job[section]["uri"] = "s3://no-such-bucket/folder/"
    assert_ended(herd("run", write(job)), 2, "s3://no-such-bucket/folder")


def test_run_with_an_endpoint_where_nothing_listens_is_refused_with_advice(
    herd: Herd, write: Callable[[dict[str, Any]], Path]
) -> None:
    bucket = Bucket(S3("http://127.0.0.1:9", "none"), "anything")
    outcome = herd("run", write(job_of(bucket)))
    assert_ended(outcome, 2, "http://127.0.0.1:9", "Check the endpoint", bucket.uri("in/"))


def test_run_with_wrong_credentials_is_refused_with_advice(
    finished_s3: Bucket, write: Callable[[dict[str, Any]], Path]
) -> None:
    if finished_s3.server.kind == "moto":
        pytest.skip("moto takes any credentials")
    wrong = {"AWS_ACCESS_KEY_ID": "wrong-key-0123", "AWS_SECRET_ACCESS_KEY": "wrong-secret-0123"}
    outcome = command("run", write(job_of(finished_s3)), **wrong)
    assert_ended(outcome, 2, "The store refuses access", finished_s3.uri("in/"), "Check that the credentials are right")
    assert not any(secret in outcome.out + outcome.err for secret in wrong.values())


def no_credentials(tmp_path: Path) -> dict[str, str | None]:
    variables = [name for name in os.environ if re.match("AWS_", name)]
    return {**dict.fromkeys(variables), "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}


def test_run_without_credentials_is_refused_with_advice(
    finished_s3: Bucket, write: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    outcome = command("run", write(job_of(finished_s3)), **no_credentials(tmp_path))
    advice = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    assert_ended(outcome, 2, "No credentials were found", advice, "anonymous: true", finished_s3.uri("in/"))


def test_plan_without_credentials_of_a_private_input_is_refused_though_it_is_called_anonymous(
    finished_s3: Bucket, write: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    job = job_of(finished_s3)
    job["input"]["storage"] = {**finished_s3.server.storage(), "anonymous": True}
    outcome = command("plan", write(job), **no_credentials(tmp_path))
    assert_ended(outcome, 2, finished_s3.uri("in/"))


def test_run_without_credentials_of_a_public_input_answers_every_row(
    s3: S3, write: Callable[[dict[str, Any]], Path], tmp_path: Path, herd: Herd
) -> None:
    if s3.kind != "moto":
        pytest.skip("rclone serves no anonymous requests once it has keys")
    bucket = Bucket(s3, "public")
    bucket.fs.pipe_file(bucket.path("in/part-0.parquet"), parquet(0, 20), ACL="public-read")
    job = job_of(bucket, output={"uri": str(tmp_path / "out")})
    job["input"]["storage"] = {**s3.storage(), "anonymous": True}
    planned = command("plan", write(job), "--json", **no_credentials(tmp_path))
    assert (planned.code, json.loads(planned.out)["num_rows"]) == (0, 20)
    assert herd("run", write(job)).code == 0
    assert herd("verify", tmp_path / "out").code == 0


def test_resume_on_s3_over_an_input_that_changed_stops_with_both_etags_and_goes_on_once_it_is_back(
    finished_s3: Bucket, herd: Herd
) -> None:
    bucket, store = finished_s3, ["--endpoint-url", finished_s3.server.endpoint_url]
    before, rows = bucket.files("out/commits"), [r["id"] for r in bucket.rows("out/data")]
    for name in ("_SUCCESS", "commits/000001.json", "commits/000002.json"):  # of either file one shard
        bucket.fs.rm_file(bucket.path(f"out/{name}"))
    changed = bucket.path("in/part-1.parquet")
    kept, old_etag = bucket.fs.cat_file(changed), bucket.fs.info(changed)["ETag"].strip('"')
    bucket.put("in/part-1.parquet", parquet(500, 20))
    new_etag = bucket.fs.info(changed)["ETag"].strip('"')

    stopped = herd("resume", bucket.uri("out"), *store)
    assert_ended(stopped, 4, f"s3://{changed}", f"ETag {old_etag} then", f"ETag {new_etag} now", "herd resume")
    assert sorted(bucket.files("out/commits")) == ["000000.json", "000001.json", "000003.json"]
    assert herd("verify", bucket.uri("out"), *store).code == 4

    bucket.put("in/part-1.parquet", kept)
    resumed = herd("resume", bucket.uri("out"), *store)
    assert resumed.code == 0
    assert not any(secret in text for secret in SECRETS for text in (resumed.out, resumed.err, stopped.err))
    after = bucket.files("out/commits")
    assert {n for n in after if after[n] != before[n]} == {"000001.json", "000002.json"}
    assert [r["id"] for r in bucket.rows("out/data")] == rows
    assert herd("verify", bucket.uri("out"), *store).code == 0


def test_s3_folder_is_removed_with_all_below_it_and_nothing_beside(s3: S3) -> None:
    bucket = Bucket(s3, "removed")
    store = Store(bucket.uri("bench"), StorageConfig(endpoint_url=bucket.server.endpoint_url))
    for name in ("bench/a/b", "bench/c", "bench.2/d"):
        bucket.put(name, b"x")
    for _ in range(2):
        store.remove_folder(bucket.uri("bench"))
        assert list(bucket.files("bench")) == []
        assert list(bucket.files("bench.2")) == ["d"]
