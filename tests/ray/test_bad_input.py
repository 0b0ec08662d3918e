"""Jobs and input that cannot be: each is told in one paragraph, before an engine starts; and rows that cannot be."""

import base64
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs import launch
from tests.conftest import DEMO, Herd
from tests.ray.helpers import assert_ended, commits, failures, png, rows_of, write_rows

WriteInput = Callable[..., Path]
WriteJob = Callable[..., Path]


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the test does must end before the cluster is asked for anything."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a cluster was connected")

    monkeypatch.setattr(launch, "connected", refuse)


@pytest.fixture
def broken_model(tmp_path: Path) -> Path:
    """A copy of the demo's model, to break."""
    return Path(shutil.copytree(DEMO / "model", tmp_path / "model"))


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"prompt": {"user": "{{ txet }}"}}, ["`prompt.user` needs column `txet`", "Did you mean `text`?", "id, text"]),
        ({"prompt": {"user": "{{ text }}", "system": "{{ tone }}"}}, ["`prompt.system` needs column `tone`"]),
        ({"prompt": {"user": "{{ text }"}}, ["The template does not parse", "prompt.user, line 1"]),
        ({"prompt": {"user": "a\n{% if text %}"}}, ["The template does not parse", "prompt.user"]),
        ({"prompt": {"messages": "number"}}, ["Column `number` is int64, which cannot hold chat messages"]),
        ({"prompt": {"messages": "chats"}}, ["`prompt.messages` needs column `chats`"]),
        ({"prompt": {}}, ["either `user` (a template) or `messages` (a column)"]),
        ({"prompt": {"user": "a", "messages": "text"}}, ["not both"]),
        ({"prompt": {"usr": "a"}}, ["unknown key `prompt.usr`", "Did you mean `user`?"]),
        ({"promt": {"user": "a"}}, ["unknown key `promt`", "Did you mean `prompt`?"]),
        ({"limits": {"max_quarantined_fracton": 0.1}}, ["Did you mean `max_quarantined_fraction`?"]),
        ({"limits": {"max_quarantined_fraction": 2}}, ["`limits.max_quarantined_fraction`", "(given: 2)"]),
        ({"shard": {"max_bytes": "many"}}, ["`shard.max_bytes`"]),
        ({"pool": {"min": 3, "max": 2}}, ["max (2) is below min (3)"]),
        ({"answer": {"choice": ["a"], "regex": "a"}}, ["not choice and regex"]),
        ({"answer": {"choice": ["a", "a"]}}, ["none twice"]),
        ({"answer": {"regex": "("}}, ["regex does not compile"]),
        ({"answer": {"json_schema": {"type": "objekt"}}}, ["json_schema is not a valid schema"]),
        ({"sampling": {"n": 2}}, ["one response a row"]),
        ({"sampling": {"tempreature": 1}}, ["no sampling parameter `tempreature`", "Did you mean `temperature`?"]),
        ({"sampling": {"max_tokens": "many"}}, ["max_tokens"]),
        ({"sampling": {"max_tokens": 0}}, ["max_tokens"]),
        ({"engine": {"kind": "vllm"}}, ["`model` is missing"]),
        ({"engine": {"kind": "ecko"}}, ["`engine.kind`", "'ecko'"]),
        ({"engine": {"kind": "echo", "echo": {"die": "x"}}}, ["`engine.echo.die`"]),
        ({"engine": {"kind": "echo", "max_model_len": 0}}, ["max_model_len must be a whole number of at least 1"]),
        ({"evaluate": {"gold": "label"}}, ["`evaluate` needs column `label`"]),
    ],
)
def test_run_of_a_job_that_cannot_be_is_refused(
    herd: Herd, write_job: WriteJob, tmp_path: Path, sections: dict[str, Any], parts: list[str]
) -> None:
    write_rows(tmp_path / "input", [{"id": "a", "text": "b", "number": 1}])
    assert_ended(herd("run", write_job(**sections)), 2, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"uri": "{in}/*.parq"}, ["No file matches this pattern", "{in}/*.parq"]),
        ({"uri": "{in}-not-there"}, ["There is nothing at this address", "{in}-not-there"]),
        ({"uri": ["{in}", "{in}-not-there/*.parquet"]}, ["No file matches this pattern"]),
        ({"uri": []}, ["`input.uri`", "at least one file"]),
        ({"uri": "gopher://bucket/a"}, ["`gopher://` is not a storage known here"]),
        ({"uri": "s3://key:hush@bucket/a"}, ["must not carry credentials"]),
        ({"uri": "{in}", "storage": {"endpoint_url": "http://key:hush@here"}}, ["must not carry credentials"]),
        ({"uri": "{in}", "carry": ["id", "labell"]}, ["`input.carry` needs column `labell`", "Did you mean `label`?"]),
        ({"uri": "{in}", "images": ["imag"]}, ["`input.images` needs column `imag`", "Did you mean `image`?"]),
        ({"uri": "{in}", "images": ["number"]}, ["Column `number` is int64, which cannot hold images", "It must be"]),
        ({"uri": "{in}", "sampling": "number"}, ["Column `number` is int64, which cannot hold sampling"]),
    ],
)
def test_run_over_input_that_cannot_be_is_refused(
    herd: Herd, write_job: WriteJob, tmp_path: Path, keys: dict[str, Any], parts: list[str]
) -> None:
    folder = write_rows(tmp_path / "input", [{"id": "a", "text": "b", "label": "c", "image": b"", "number": 1}])

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: filled(v) for k, v in value.items()}
        return [filled(v) for v in value] if isinstance(value, list) else value.replace("{in}", str(folder))

    outcome = herd("run", write_job(input=filled(keys)))
    assert_ended(outcome, 2, *filled(parts))
    assert "hush" not in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda data: b"id,text\n1,hello\n" * 20, ["This is not a Parquet file"]),
        (lambda data: data[:-100], ["This is not a Parquet file, or it is cut short"]),
        (lambda data: b"", ["cut short (0 bytes)"]),
        (lambda data: data[:-10] + b"\xff\xff" + data[-8:], ["This is not a Parquet file, or it is cut short"]),
    ],
)
def test_run_over_a_file_that_is_no_parquet_is_refused_with_its_name(
    herd: Herd, write_input: WriteInput, write_job: WriteJob, change: Callable[[bytes], bytes], parts: list[str]
) -> None:
    bad = write_input(100) / "part-1.parquet"
    bad.write_bytes(change(bad.read_bytes()))
    assert_ended(herd("run", write_job()), 2, *parts, str(bad), "Write it again")


@pytest.mark.usefixtures("no_engine")
def test_run_over_a_folder_without_parquet_is_refused(herd: Herd, write_job: WriteJob, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "rows.csv").write_text("id,text\n")
    assert_ended(herd("run", write_job()), 2, "This folder holds no .parquet file", str(tmp_path / "input"))


@pytest.mark.usefixtures("no_engine")
def test_run_over_files_without_rows_is_refused(
    herd: Herd, write_input: WriteInput, write_job: WriteJob, tmp_path: Path
) -> None:
    write_input(0)
    assert_ended(herd("run", write_job()), 2, "The input has no rows in its 2 files", str(tmp_path / "input"))


@pytest.mark.usefixtures("no_engine")
def test_run_over_a_second_file_of_another_type_is_refused_with_both_types(
    herd: Herd, write_input: WriteInput, write_job: WriteJob
) -> None:
    second = write_input(100) / "part-1.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": [1]}), second)
    outcome = herd("run", write_job())
    assert_ended(outcome, 2, "Column `text` is int64 here and string in the first file", str(second))
    pq.write_table(pa.table({"id": ["a"], "txt": ["b"]}), second)
    assert_ended(herd("run", write_job()), 2, "needs column `text`", "Did you mean `txt`?", str(second))


@pytest.mark.usefixtures("no_engine")
def test_run_over_a_column_with_the_name_of_an_output_column_is_refused(
    herd: Herd, write_job: WriteJob, tmp_path: Path
) -> None:
    write_rows(tmp_path / "input", [{"text": "a", "answer": "b"}])
    assert_ended(herd("run", write_job()), 2, "Column `answer` of the input has the name of an output column")


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("engine.tensor_parallel_sise=2", ["no engine argument `tensor_parallel_sise`", "`tensor_parallel_size`?"]),
        ("engine.enforce_eagr=true", ["no engine argument `enforce_eagr`", "Did you mean `enforce_eager`?"]),
        ("sampling.max_token=4", ["no sampling parameter `max_token`", "Did you mean `max_tokens`?"]),
        ("engine.model=x", ["the model is given by the top-level key `model`"]),
        ("engine.tensor_parallel_size=two", ["tensor_parallel_size must be a whole number"]),
    ],
)
def test_run_with_a_setting_that_vllm_does_not_have_is_refused(
    herd: Herd, write_input: WriteInput, write_job: WriteJob, setting: str, parts: list[str]
) -> None:
    write_input(20)
    job = write_job(model=str(DEMO / "model"), engine={"kind": "vllm"})
    assert_ended(herd("run", job, "--set", setting), 2, *parts)


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("name", ["behemoth", "meta-llama/Llama-4-Behemoth"])
def test_run_with_behemoth_is_refused(herd: Herd, write_input: WriteInput, write_job: WriteJob, name: str) -> None:
    write_input(20)
    outcome = herd("run", write_job(model=name, engine={"kind": "vllm"}))
    assert_ended(outcome, 2, "never released its weights", "Use `maverick`", name)


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("maverik", ["There is no model `maverik`", "Did you mean `maverick`?", "Profiles: scout"]),
        ("./no/such/folder", ["There is no model `./no/such/folder`", "a path"]),
        ("/no/such/folder", ["There is no model `/no/such/folder`"]),
    ],
)
def test_run_with_a_model_that_is_unknown_is_refused(
    herd: Herd, write_input: WriteInput, write_job: WriteJob, name: str, parts: list[str]
) -> None:
    write_input(20)
    assert_ended(herd("run", write_job(model=name, engine={"kind": "vllm"})), 2, *parts)


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda m: (m / "config.json").unlink(), ["The model has no config.json"]),
        (lambda m: (m / "model.safetensors").unlink(), ["The model has no .safetensors weights"]),
        (lambda m: (m / "chat_template.jinja").unlink(), ["The model has no chat template"]),
        (
            lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-1000]),
            ["Weight file model.safetensors has 1,941,896 bytes and its header says 1,942,896"],
        ),
        (lambda m: (m / "model.safetensors").write_bytes(b""), ["Weight file model.safetensors"]),
        (lambda m: (m / "model.safetensors").write_bytes(b"not weights at all"), ["Weight file model.safetensors"]),
        (
            lambda m: (m / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-2-of-2.safetensors"}}'
            ),
            ["1 of the model's 1 weight files are missing, first model-2-of-2.safetensors"],
        ),
        (
            lambda m: [f.unlink() for f in m.glob("tokenizer*")],
            ["The model has no tokenizer files"],
        ),
    ],
)
def test_run_with_a_model_that_is_broken_is_refused_with_what_is_missing(
    herd: Herd,
    write_input: WriteInput,
    write_job: WriteJob,
    broken_model: Path,
    change: Callable[[Path], Any],
    parts: list[str],
) -> None:
    write_input(20)
    change(broken_model)
    job = write_job(model=str(broken_model), engine={"kind": "vllm"})
    assert_ended(herd("run", job), 2, *parts, str(broken_model))


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("name", ["notes.txt", "data/part-000099.parquet", "deep/er/notes.txt"])
def test_run_to_an_output_that_holds_foreign_files_is_refused_and_leaves_them(
    herd: Herd, write_input: WriteInput, write_job: WriteJob, tmp_path: Path, name: str
) -> None:
    write_input(20)
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    assert_ended(herd("run", write_job()), 2, "holds files that are not a run's", str(foreign), "Choose an empty")
    assert [f for f in (tmp_path / "out").rglob("*") if f.is_file()] == [foreign]


@pytest.mark.usefixtures("no_engine")
def test_run_to_an_output_that_cannot_be_written_is_refused(
    herd: Herd, write_input: WriteInput, write_job: WriteJob, tmp_path: Path
) -> None:
    write_input(20)
    (tmp_path / "file").write_text("a regular file")  # a folder without permission would not stop root
    uri = str(tmp_path / "file" / "out")
    assert_ended(herd("run", write_job(output={"uri": uri})), 2, uri)


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: [1", ["The job file is not YAML", "line"]),
        ("- a\n- b\n", ["The job is not a mapping"]),
        ("", ["The job is not a mapping"]),
        ("name: x\n", ["`input` is missing", "`prompt` is missing", "`output` is missing"]),
    ],
)
def test_run_of_a_job_file_that_is_none_is_refused(herd: Herd, tmp_path: Path, text: str, parts: list[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    assert_ended(herd("run", job), 2, *parts, str(job))
    assert_ended(herd("run", tmp_path / "none.yaml"), 2, "There is no such job file", "none.yaml")


@pytest.mark.usefixtures("no_engine")
def test_run_of_an_override_without_a_value_is_refused(
    herd: Herd, write_input: WriteInput, write_job: WriteJob
) -> None:
    write_input(20)
    assert_ended(herd("run", write_job(), "--set", "limits"), 2, "`limits` is not of the form key.path=value")


def test_run_with_more_engines_than_the_cluster_holds_is_refused_before_one_starts(
    herd: Herd, write_input: WriteInput, write_job: WriteJob
) -> None:
    write_input(20)
    outcome = herd("run", write_job(pool={"min": 1, "accelerator": "H100"}))
    assert_ended(outcome, 2, "do not fit", "1 H100 on one node", "Lower pool.min")


def test_run_over_a_row_group_that_cannot_be_decoded_commits_the_rest_and_stops(
    herd: Herd, write_input: WriteInput, write_job: WriteJob, tmp_path: Path
) -> None:
    bad = write_input(40, num_files=1) / "part-0.parquet"
    column = pq.ParquetFile(bad).metadata.row_group(1).column(1)
    data = bytearray(bad.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    bad.write_bytes(data)
    outcome = herd("run", write_job())
    assert_ended(outcome, 4, "1 of 2 shards", "shard 1", "Row group 1 cannot be read", str(bad), "herd resume")
    assert [r["id"] for r in rows_of(tmp_path / "out")] == [f"row-{i:05d}" for i in range(20)]
    assert set(commits(tmp_path / "out")) == {0}


def huge_png() -> bytes:
    """A PNG whose header claims 100,000 x 100,000 pixels."""
    sound = png()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + sound[24:29]
    return sound[:12] + header + struct.pack(">I", zlib.crc32(header)) + sound[33:]


def test_run_over_rows_that_are_broken_each_in_its_own_way_quarantines_these_alone(herd: Herd, tmp_path: Path) -> None:
    picture, local = png(), tmp_path / "picture.png"
    local.write_bytes(picture)
    data_uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    with socket.create_server(("127.0.0.1", 0)) as private:
        here = f"http://127.0.0.1:{private.getsockname()[1]}/picture.png?token=hush"
        cells: dict[str, tuple[Any, str]] = {
            "null image": (None, "image/image_null"),
            "null in a list": ([None], "image/image_null"),
            "neither bytes nor path": ([{}], "image/image_null"),
            "no bytes": ([{"bytes": b""}], "image/image_empty"),
            "truncated": ([{"bytes": png((64, 64))[:-60]}], "image/image_truncated"),
            "second truncated": ([{"bytes": picture}, {"bytes": png((64, 64))[:-60]}], "image/image_truncated"),
            "text as image": ([{"bytes": b"this is no image, it is text"}], "image/not_an_image"),
            "huge header": ([{"bytes": huge_png()}], "image/image_too_large"),
            "private address": ([{"path": here}], "image/address_not_allowed"),
            "missing file": ([{"path": f"{tmp_path}/none.png"}], "image/image_missing"),
            "missing file uri": ([{"path": f"file://{tmp_path}/none.png"}], "image/image_missing"),
            "a folder": ([{"path": str(tmp_path)}], "image/image_unreachable"),
            "other scheme": ([{"path": "ftp://example.com/a.png"}], "image/scheme_not_allowed"),
            "data uri": ([{"path": "data:image/png;base64,###"}], "image/not_an_image"),
            "no uri": ([{"path": "http://[::1/a.png"}], "image/image_unreachable"),
            "zero byte in path": ([{"path": "a\0b.png"}], "image/image_unreachable"),
        }
        texts = {
            "null prompt": (None, 1, [], "render/null_value"),
            "template error": ("words", 0, [], "render/template_error"),
            "empty prompt": ("", 1, [], "render/empty_prompt"),
            "blank prompt": (" \n ", 1, [], "render/empty_prompt"),
            "long prompt": ("word " * 30, 1, [], "render/prompt_too_long"),
        }
        good = {
            "text alone": ("words", 1, []),
            "long as it may be": ("word " * 19, 1, []),
            "no text": ("", 1, [{"bytes": picture}]),
            "data": ("words", 1, [{"path": data_uri}]),
            "a file": ("words", 1, [{"path": str(local)}]),
            "a file uri": ("words", 1, [{"path": f"file://{local}"}]),
            "several": ("words", 1, [{"bytes": picture}, {"path": str(local)}]),
        }
        rows = [{"id": k, "text": t, "n": n, "image": i} for k, (t, n, i) in good.items()]
        rows += [{"id": k, "text": t, "n": n, "image": i} for k, (t, n, i, _) in texts.items()]
        rows += [{"id": k, "text": "words", "n": 1, "image": i} for k, (i, _) in cells.items()]
        rows = rows[::2] + rows[1::2]  # good ones among the others
        image = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("n", pa.int64()), ("image", image)])
        job = {
            "input": {
                "uri": str(write_rows(tmp_path / "input", pa.Table.from_pylist(rows, schema), 8)),
                "images": ["image"],
            },
            "prompt": {"user": "{{ text }}{% if 10 // n > 10 %}!{% endif %}"},
            "engine": {"kind": "echo", "max_model_len": 20},
            "render": {"images": {"allow_local_files": True}},
            "limits": {"max_quarantined_fraction": 1},
            "output": {"uri": str(tmp_path / "out")},
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        outcome = herd("run", tmp_path / "job.yaml")
    assert outcome.code == 0
    wanted = {k: why for k, (_, why) in cells.items()} | {k: why for k, (*_, why) in texts.items()}
    assert failures(tmp_path / "out") == wanted
    assert {r["id"] for r in rows_of(tmp_path / "out")} == set(good)
    messages = {r["id"]: r["message"] for r in rows_of(tmp_path / "out", "quarantine")}
    assert "text" in messages["null prompt"]
    assert "ZeroDivisionError" in messages["template error"]
    assert "30 tokens" in messages["long prompt"] and "20" in messages["long prompt"]
    assert "100000 x 100000" in messages["huge header"]
    assert "not a public address" in messages["private address"]
    assert "hush" not in messages["private address"]  # a query may be a presigned URL's signature
    assert f"{tmp_path}/none.png" in messages["missing file"]
    assert all(m and "Traceback" not in m for m in messages.values())
    assert herd("verify", tmp_path / "out").code == 0
