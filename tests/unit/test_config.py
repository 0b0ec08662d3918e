import pytest

from pipeline.config import RunConfig
from pipeline.config_errors import parse_config
from pipeline.errors import ConfigError

from .helpers import job, job_data, refusal


def test_config_unknown_key_names_nearest() -> None:
    assert "unknown key `sampeling`. Did you mean `sampling`?" in refusal(sampeling={})


def test_config_unknown_nested_key_names_nearest() -> None:
    assert "unknown key `render.images.max_pixel`. Did you mean `max_pixels`?" in refusal(
        render={"images": {"max_pixel": 5}}
    )


def test_config_unknown_key_in_optional_section_names_nearest() -> None:
    message = refusal(evaluate={"gold": "label", "golds": "x"})
    assert "unknown key `evaluate.golds`. Did you mean `gold`?" in message


def test_config_unknown_key_unlike_any_lists_known() -> None:
    message = refusal(pool={"zzzzzz": 1})
    assert "unknown key `pool.zzzzzz`. Known here: min, max, accelerator, shards_in_flight" in message


def test_config_missing_keys_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"engine": {"kind": "echo"}}, where="job.yaml")
    message = str(caught.value)
    for key in ("`input` is missing", "`prompt` is missing", "`output` is missing"):
        assert key in message
    assert "(job.yaml)" in message


def test_config_missing_nested_key_has_its_path() -> None:
    assert "`output.uri` is missing" in refusal(output={})


def test_config_not_a_mapping_refused() -> None:
    with pytest.raises(ConfigError, match="not a mapping of keys to values"):
        parse_config(["a"])


def test_config_wrong_type_shows_what_was_given() -> None:
    message = refusal(pool={"min": "many"})
    assert "`pool.min`" in message
    assert "(given: 'many')" in message


@pytest.mark.parametrize("prompt", [{"user": "a", "messages": "chat"}, {}, {"system": "a"}])
def test_config_prompt_not_exactly_one_source_refused(prompt: dict[str, str]) -> None:
    message = refusal(prompt=prompt)
    assert "give either `user` (a template) or `messages` (a column), not both and not neither" in message


def test_config_messages_with_image_columns_refused() -> None:
    message = refusal(input={"uri": "a", "images": "image"}, prompt={"messages": "chat"})
    assert "`input.images` goes with `prompt.user`" in message


def test_config_two_answer_shapes_refused() -> None:
    message = refusal(answer={"choice": ["a"], "regex": "b"})
    assert "give one of choice, regex and json_schema, not choice and regex" in message


@pytest.mark.parametrize("choice", [[], ["a", "a"]])
def test_config_choice_empty_or_doubled_refused(choice: list[str]) -> None:
    assert "choice must list at least one answer, and none twice" in refusal(answer={"choice": choice})


def test_config_regex_broken_refused() -> None:
    assert "regex does not compile: " in refusal(answer={"regex": "(a"})


def test_config_json_schema_broken_refused() -> None:
    assert "json_schema is not a valid schema: " in refusal(answer={"json_schema": {"type": "strong"}})


@pytest.mark.parametrize("answer", ["text", None, {}])
def test_config_answer_text_is_free_text(answer: object) -> None:
    assert job(answer=answer).answer.kind == "text"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [({"choice": ["a"]}, "choice"), ({"regex": "a+"}, "regex"), ({"json_schema": {"type": "object"}}, "json_schema")],
)
def test_config_answer_shape_has_kind(answer: dict[str, object], kind: str) -> None:
    assert job(answer=answer).answer.kind == kind


def test_config_pool_max_below_min_refused() -> None:
    assert "`pool`: max (1) is below min (2)" in refusal(pool={"min": 2, "max": 1})


def test_config_pool_without_max_stays_at_min() -> None:
    assert job(pool={"min": 3}).pool.ceiling == 3


def test_config_several_samples_refused() -> None:
    message = refusal(sampling={"n": 2})
    assert "Herd gives one response a row".lower() in message.lower()
    assert "repeat the rows with different seeds" in message


@pytest.mark.parametrize("key", ["structured_outputs", "output_kind", "detokenize"])
def test_config_sampling_that_herd_sets_refused(key: str) -> None:
    assert f"`{key}` is set by Herd itself" in refusal(sampling={key: 1})


def test_config_sampling_has_greedy_defaults() -> None:
    assert job().effective_sampling == {"temperature": 0.0, "max_tokens": 512}
    assert job(sampling={"max_tokens": 4, "seed": 1}).effective_sampling == {
        "temperature": 0.0,
        "max_tokens": 4,
        "seed": 1,
    }


def test_config_vllm_without_model_refused() -> None:
    assert "`model` is missing: give a profile, a hub id or a path" in refusal(engine={})


def test_config_model_inside_engine_refused() -> None:
    message = refusal(model="scout", engine={"model": "scout"})
    assert "the model is given by the top-level key `model`, not inside `engine`" in message


@pytest.mark.parametrize("key", ["tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "max_model_len"])
@pytest.mark.parametrize("value", [0, -1, "two", 1.5])
def test_config_engine_size_not_a_positive_whole_number_refused(key: str, value: object) -> None:
    message = refusal(engine={"kind": "echo", key: value})
    assert f"{key} must be a whole number of at least 1, not {value!r}" in message


def test_config_engine_gpus_are_the_product_of_the_parallel_sizes() -> None:
    config = job(model="m", engine={"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "dtype": "bfloat16"})
    assert config.engine.num_gpus == 8
    assert config.engine.vllm_args == {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "dtype": "bfloat16"}


def test_config_evaluate_column_not_carried_refused() -> None:
    message = refusal(input={"uri": "a", "carry": ["id"]}, evaluate={"gold": "label"})
    assert "evaluate needs column 'label', which input.carry leaves out" in message


SECRET = "hunter2secret"


@pytest.mark.parametrize(
    "changes",
    [
        {"input": {"uri": f"s3://AKIA:{SECRET}@bucket/a.parquet"}},
        {"input": {"uri": ["a.parquet", f"s3://AKIA:{SECRET}@bucket/a.parquet"]}},
        {"input": {"uri": "a", "storage": {"endpoint_url": f"http://me:{SECRET}@localhost:9000"}}},
        {"output": {"uri": "a", "storage": {"endpoint_url": f"http://me:{SECRET}@localhost:9000"}}},
        {"output": {"uri": f"s3://AKIA:{SECRET}@bucket/out"}},
        {"model": f"s3://AKIA:{SECRET}@bucket/model", "engine": {"kind": "vllm"}},
    ],
    ids=["input", "input_list", "input_endpoint", "output_endpoint", "output", "model"],
)
def test_config_credentials_in_an_address_refused_and_not_repeated(changes: dict[str, object]) -> None:
    message = refusal(**changes)
    assert "must not carry credentials" in message
    assert SECRET not in message


@pytest.mark.parametrize("uri", ["s3://bucket/user@example.com/a.parquet", "/data/a@b.parquet", "a@b.parquet"])
def test_config_at_sign_in_a_path_accepted(uri: str) -> None:
    assert job(input={"uri": uri}).input.uri == [uri]


@pytest.mark.parametrize("uri", [[], "", ["a", ""]])
def test_config_input_uri_empty_refused(uri: object) -> None:
    assert "give at least one file, glob or folder" in refusal(input={"uri": uri})


def test_config_output_uri_empty_refused() -> None:
    """An empty URI would put the run's files at the root of the filesystem."""
    assert "`output.uri`" in refusal(output={"uri": ""})


def test_config_single_strings_become_lists() -> None:
    config = job(input={"uri": "a.parquet", "images": "image"})
    assert (config.input.uri, config.input.images) == (["a.parquet"], ["image"])


@pytest.mark.parametrize(
    ("given", "expected"), [("64MiB", 64 * 2**20), ("1GiB", 2**30), ("2 kB", 2000), (4096, 4096), ("10b", 10)]
)
def test_config_size_is_read_as_bytes(given: object, expected: int) -> None:
    assert job(shard={"max_bytes": given}).shard.max_bytes == expected


def test_config_size_in_unknown_unit_refused() -> None:
    assert "`shard.max_bytes`" in refusal(shard={"max_bytes": "64 elephants"})


@pytest.mark.parametrize("size", [0, -1])
def test_config_shard_of_no_bytes_refused(size: int) -> None:
    assert "`shard.max_bytes`" in refusal(shard={"max_bytes": size})


@pytest.mark.parametrize("name", ["-a", "a b", "", "a/b"])
def test_config_name_unfit_for_a_file_refused(name: str) -> None:
    assert "`name`" in refusal(name=name)


def test_config_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        job().pool.min = 2  # type: ignore[misc]


def test_config_survives_json() -> None:
    """`run.json` holds the job, and a resume reads it from there."""
    config = job(
        answer={"json_schema": {"type": "object", "properties": {"a": {"const": None}}}},
        engine={"kind": "echo", "max_num_seqs": 8},
        shard={"max_bytes": "1MiB"},
        evaluate={"gold": "label"},
    )
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_config_several_faults_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**job_data(), "pool": {"min": 0}, "shard": {"max_rows": 0}, "nam": "x"})
    message = str(caught.value)
    assert "`pool.min`" in message and "`shard.max_rows`" in message and "`nam`" in message
