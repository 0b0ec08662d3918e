import re
from pathlib import Path

import pytest

from jobs.jobfile import adhoc_job, amended, load_job
from pipeline.errors import ConfigError

JOB = """\
name: demo
input: {uri: in.parquet}
prompt: {user: "{{ text }}"}
engine: {kind: echo}
output: {uri: out}
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    return str(file)


def test_jobfile_sound_loads(path: str) -> None:
    config = load_job(path)
    assert (config.name, config.input.uri, config.prompt.user) == ("demo", ["in.parquet"], "{{ text }}")


def test_jobfile_missing_refused_with_path(tmp_path: Path) -> None:
    path = str(tmp_path / "none.yaml")
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert str(caught.value) == f"There is no such job file ({path}). See `herd run --help` for one."


def test_jobfile_folder_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="The job file cannot be read"):
        load_job(str(tmp_path))


def test_jobfile_not_utf8_refused(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="The job file cannot be read"):
        load_job(str(file))


def test_jobfile_not_yaml_refused_with_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: demo\ninput: {uri: a\noutput: b\n")
    with pytest.raises(ConfigError) as caught:
        load_job(str(file))
    assert str(caught.value).startswith("The job file is not YAML: ")
    assert f"({file}, line 3)" in str(caught.value)


def test_jobfile_impossible_date_refused(tmp_path: Path) -> None:
    """YAML's reader raises a plain ValueError for a value that only looks like a date."""
    file = tmp_path / "job.yaml"
    file.write_text("name: 2024-99-99\n")
    with pytest.raises(ConfigError) as caught:
        load_job(str(file))
    assert str(file) in str(caught.value)


def test_jobfile_code_tag_refused(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="not YAML"):
        load_job(str(file))


@pytest.mark.parametrize("text", ["", "- a\n", "text\n"])
def test_jobfile_without_keys_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="not a mapping of keys to values"):
        load_job(str(file), ["pool.min=1"])


def test_jobfile_unknown_key_names_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB + "pol: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_job(str(file))
    assert "unknown key `pol`. Did you mean `pool`?" in str(caught.value)
    assert str(file) in str(caught.value)


def test_set_nested_keys_have_yaml_values(path: str) -> None:
    config = load_job(
        path,
        [
            "pool.min=2",
            "render.images.allow_local_files=true",
            "answer.choice=[a, b]",
            "sampling={temperature: 0.5}",
            "sampling.max_tokens=7",
            "engine.max_model_len=128",
            "limits.max_quarantined_fraction=0.25",
        ],
    )
    assert config.pool.min == 2
    assert config.render.images.allow_local_files is True
    assert config.answer.choice == ["a", "b"]
    assert config.effective_sampling == {"temperature": 0.5, "max_tokens": 7}
    assert config.engine.kind == "echo" and config.engine.vllm_args == {"max_model_len": 128}
    assert config.limits.max_quarantined_fraction == 0.25


def test_set_later_override_wins(path: str) -> None:
    assert load_job(path, ["pool.min=2", "pool.min=3"]).pool.min == 3


@pytest.mark.parametrize("template", ["{{ text }}", "Say: {{ text }}", "{% if a %}b{% endif %}", "a=b"])
def test_set_template_is_taken_as_text(path: str, template: str) -> None:
    assert load_job(path, [f"prompt.user={template}"]).prompt.user == template


def test_set_over_a_plain_value_makes_a_section(path: str) -> None:
    assert load_job(path, ["answer=text", "answer.regex=a+"]).answer.regex == "a+"


@pytest.mark.parametrize("override", ["pool.min", "=2", ""])
def test_set_without_key_or_value_refused(path: str, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(path, [override])
    assert f"`{override}` is not of the form key.path=value (--set)" in str(caught.value)


def test_set_unknown_key_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown key `pool.mim`. Did you mean `min`?"):
        load_job(path, ["pool.mim=2"])


def test_set_impossible_date_is_taken_as_text(path: str) -> None:
    assert load_job(path, ["prompt.user=2024-99-99"]).prompt.user == "2024-99-99"


def test_adhoc_job_takes_dotted_keys_and_skips_what_is_not_given() -> None:
    config = adhoc_job(
        {
            "input.uri": ("a.parquet", "b.parquet"),
            "input.images": (),
            "prompt.user": "hi",
            "prompt.system": None,
            "engine.kind": "echo",
            "output.uri": "out",
        },
        ["pool.min=2"],
    )
    assert config.name == "adhoc"
    assert config.input.uri == ["a.parquet", "b.parquet"]
    assert config.input.images == []
    assert config.prompt.system is None
    assert config.pool.min == 2


def test_adhoc_job_unsound_refused() -> None:
    with pytest.raises(ConfigError, match="`model` is missing"):
        adhoc_job({"input.uri": "a", "prompt.user": "hi", "output.uri": None})


def test_adhoc_job_without_output_gets_a_folder_of_its_own() -> None:
    config = adhoc_job({"input.uri": "a", "prompt.user": "hi", "engine.kind": "echo"}, ["name=cows"])
    assert re.fullmatch(r"\./out/cows-\d{8}T\d{6}", config.output.uri)


def test_amended_without_overrides_is_the_same_job(path: str) -> None:
    config = load_job(path)
    assert amended(config, []) is config


def test_amended_changes_only_what_it_is_told_to(path: str) -> None:
    config = load_job(path, ["pool.min=2", "engine.max_num_seqs=8", "sampling.temperature=0.5"])
    changed = amended(config, ["pool.max=4", "engine.max_num_seqs=16", "limits.max_engine_restarts=9"])
    before, after = config.model_dump(), changed.model_dump()
    assert (after["pool"].pop("max"), before["pool"].pop("max")) == (4, None)
    assert (after["engine"].pop("max_num_seqs"), before["engine"].pop("max_num_seqs")) == (16, 8)
    assert (after["limits"].pop("max_engine_restarts"), before["limits"].pop("max_engine_restarts")) == (9, 6)
    assert after == before


@pytest.mark.parametrize(
    "overrides",
    [
        ["answer.choice=[a, b]"],
        ["answer.json_schema={type: object, properties: {a: {type: integer}}}"],
        ["shard.max_bytes=1MiB", "render.images.max_bytes=10KB"],
        ["input.uri=[a, b]", "input.carry=[id]"],
        ["engine.echo.die_on=x", "engine.tensor_parallel_size=2"],
        ["evaluate={gold: label}"],
    ],
)
def test_amended_keeps_what_the_job_has_given(path: str, overrides: list[str]) -> None:
    config = load_job(path, overrides)
    assert amended(config, ["pool.min=1"]).model_dump() == config.model_dump()


def test_amended_leaves_the_earlier_job_as_it_was(path: str) -> None:
    config = load_job(path, ["sampling.temperature=0.5", "engine.max_num_seqs=8"])
    before = config.model_dump()
    amended(config, ["sampling.temperature=1.0", "engine.max_num_seqs=16", "pool.min=3"])
    assert config.model_dump() == before


@pytest.mark.parametrize("override", ["output.uri=elsewhere", "output={uri: elsewhere}"])
def test_amended_job_that_would_write_elsewhere_refused(path: str, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        amended(load_job(path), [override])
    assert str(caught.value) == "A run stays where its output is (--set output.uri)."


def test_amended_may_reach_the_same_output_by_another_way(path: str) -> None:
    changed = amended(load_job(path), ["output.storage.endpoint_url=http://localhost:9000"])
    assert (changed.output.uri, changed.output.storage.endpoint_url) == ("out", "http://localhost:9000")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("pool.mim=2", "unknown key `pool.mim`. Did you mean `min`?"),
        ("pool.min=0", "pool.min"),
        ("pool.min", "`pool.min` is not of the form key.path=value"),
        ("output={}", "`output.uri` is missing"),
    ],
)
def test_amended_unsound_refused(path: str, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        amended(load_job(path), [override])
    assert said in str(caught.value)
    assert "--set" in str(caught.value)
