import json
from typing import Any

import jsonschema
import pytest

from pipeline.engine.echo import EchoEngine, EchoPreparer, example_of
from pipeline.errors import ConfigError, RowError, Stage
from pipeline.render.rows import Renderer
from pipeline.request import Completion, Failure

from .helpers import job, png, row_error


def ask(texts: list[str], **changes: Any) -> list[Completion]:
    """The engine's answers to these prompts, in their order."""
    config = job(**changes)
    engine, renderer = EchoEngine(config), Renderer(config)
    for key, text in enumerate(texts):
        engine.add(key, EchoPreparer(config).prepare(renderer.render({"text": text})))
    out: dict[int, Completion] = {}
    while engine.has_work():
        for key, result in engine.step():
            assert isinstance(result, Completion)
            out[key] = result
    return [out[key] for key in range(len(texts))]


def test_echo_text_job_gets_its_words_back() -> None:
    (done,) = ask(["one two  three\n"])
    assert (done.text, done.finish_reason, done.prompt_tokens) == ("one two  three\n", "stop", 3)


def test_echo_texts_are_those_of_the_completions() -> None:
    engine = EchoEngine(job())
    assert engine.texts([Completion("a", [0], "stop", 1), Completion(None, [], "stop", 1)]) == ["a", ""]


@pytest.mark.parametrize(
    "answer",
    ["text", {"choice": ["a", "b", "c"]}, {"json_schema": {"enum": [1, 2, 3, 4]}}],
    ids=["text", "choice", "json"],
)
def test_echo_answers_are_a_function_of_the_prompt(answer: Any) -> None:
    texts = [f"prompt {n}" for n in range(20)]
    forwards = [c.text for c in ask(texts, answer=answer)]
    backwards = [c.text for c in ask(texts[::-1], answer=answer)][::-1]
    assert forwards == backwards
    assert len(set(forwards)) > 1


def test_echo_choice_is_one_of_the_choices() -> None:
    choices = ["yes", "no", "not at all"]
    assert {c.text for c in ask([str(n) for n in range(50)], answer={"choice": choices})} == set(choices)


SCHEMAS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "minLength": 5},
    {"type": "integer"},
    {"type": "integer", "minimum": 7},
    {"type": "number", "minimum": 0.5},
    {"type": "boolean"},
    {"type": "null"},
    {"type": ["null", "string"]},
    {"const": {"a": 1}},
    {"enum": ["a", 1, None]},
    {"type": "array", "items": {"type": "integer"}},
    {"type": "array", "items": {"type": "integer"}, "minItems": 3},
    {"type": "array", "minItems": 1},
    {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "object", "properties": {"c": {"enum": [1, 2]}}}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    {"properties": {"a": {"type": "boolean"}}, "required": ["a"]},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_echo_example_is_valid_under_its_schema(schema: dict[str, Any]) -> None:
    for number in (0, 1, 12345):
        jsonschema.validate(example_of(schema, number), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 1.5},
        {"type": "integer", "maximum": -3},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "maxLength": 0},
    ],
    ids=json.dumps,
)
def test_echo_example_keeps_to_bounds(schema: dict[str, Any]) -> None:
    jsonschema.validate(example_of(schema), schema)


def test_echo_json_schema_job_gets_a_valid_document() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    (done,) = ask(["x"], answer={"json_schema": schema})
    assert json.loads(done.text or "") == {"n": 3}


def test_echo_max_tokens_cuts_and_says_length() -> None:
    (done,) = ask(["one two three"], sampling={"max_tokens": 2})
    assert (done.text, len(done.token_ids), done.finish_reason) == ("one two", 2, "length")


def test_echo_answer_of_just_max_tokens_is_whole() -> None:
    (done,) = ask(["one two three"], sampling={"max_tokens": 3})
    assert (done.text, done.finish_reason) == ("one two three", "stop")


def test_echo_fail_on_fails_the_row_and_no_other() -> None:
    config = job(engine={"kind": "echo", "echo": {"fail_on": "b[ao]d"}})
    engine, renderer = EchoEngine(config), Renderer(config)
    prepared = [EchoPreparer(config).prepare(renderer.render({"text": t})) for t in ("good", "so bad")]
    engine.add(0, prepared[0])
    error = row_error(lambda: engine.add(1, prepared[1]))
    assert (error.stage, error.error_type) == (Stage.ENGINE, "echo_fail_on")
    assert error.message == "the prompt matches fail_on: b[ao]d"
    assert [key for key, _ in engine.step()] == [0]
    assert not engine.has_work()


def test_echo_hang_on_never_answers() -> None:
    config = job(engine={"kind": "echo", "echo": {"hang_on": "wait"}})
    engine, renderer = EchoEngine(config), Renderer(config)
    engine.add(0, EchoPreparer(config).prepare(renderer.render({"text": "wait"})))
    assert engine.step() == []
    assert engine.has_work()


def test_echo_latency_holds_an_answer_until_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pipeline.engine.echo.time.monotonic", lambda: now[0])
    monkeypatch.setattr("pipeline.engine.echo.time.sleep", lambda seconds: None)
    config = job(engine={"kind": "echo", "echo": {"latency_s": 5}})
    engine = EchoEngine(config)
    engine.add(0, EchoPreparer(config).prepare(Renderer(config).render({"text": "a"})))
    now[0] = 104.9
    assert engine.step() == [] and engine.has_work()
    now[0] = 105.0
    ((key, result),) = engine.step()
    assert key == 0 and not isinstance(result, Failure)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The engine's time, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr("pipeline.engine.echo.time.monotonic", lambda: now[0])
    monkeypatch.setattr("pipeline.engine.echo.time.sleep", lambda seconds: None)
    return now


def begun(texts: list[str], **engine: Any) -> EchoEngine:
    """An engine that was just asked these prompts, numbered in their order."""
    config = job(engine={"kind": "echo", **engine})
    echo, renderer = EchoEngine(config), Renderer(config)
    for key, text in enumerate(texts):
        echo.add(key, EchoPreparer(config).prepare(renderer.render({"text": text})))
    return echo


def test_echo_token_s_makes_longer_answers_take_longer(clock: list[float]) -> None:
    engine = begun(["a b c", "a"], echo={"latency_s": 1, "token_s": 2})
    ended = []
    for clock[0] in (102.9, 103.0, 106.9, 107.0):
        ended.append([key for key, _ in engine.step()])
    assert ended == [[], [1], [], [0]]


def test_echo_requests_beyond_max_num_seqs_wait_for_a_seat(clock: list[float]) -> None:
    engine = begun(["a"] * 3, max_num_seqs=2, echo={"latency_s": 5})
    assert (engine.gauges()["running"], engine.gauges()["waiting"]) == (2, 1)
    clock[0] = 105.0
    assert [key for key, _ in engine.step()] == [0, 1]
    clock[0] = 109.9
    assert engine.step() == [] and engine.has_work()
    clock[0] = 110.0
    assert [key for key, _ in engine.step()] == [2] and not engine.has_work()


@pytest.mark.parametrize(("words", "fits"), [(3, True), (4, False), (5, False)])
def test_echo_prompt_that_fills_the_context_fails_the_row(words: int, fits: bool) -> None:
    config = job(engine={"kind": "echo", "max_model_len": 4})
    preparer, request = EchoPreparer(config), Renderer(config).render({"text": "a " * words})
    if fits:
        assert len(preparer.prepare(request).prompt_token_ids) == words
        return
    error: RowError = row_error(lambda: preparer.prepare(request))
    assert (error.stage, error.error_type) == (Stage.RENDER, "prompt_too_long")
    assert error.message == f"the prompt has {words} tokens and the context holds 4"


def test_echo_regex_answer_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        EchoEngine(job(answer={"regex": "a"}))
    assert str(caught.value) == (
        "The echo engine cannot make text for a regex (answer.regex). Use text, choice or vllm."
    )


def test_echo_request_digest_changes_with_what_is_asked() -> None:
    def digest(row: dict[str, Any], **changes: Any) -> str:
        config = job(**changes)
        return EchoPreparer(config).prepare(Renderer(config).render(row)).request_sha256

    images = {"input": {"uri": "x", "images": "image"}}
    base = digest({"text": "a"})
    assert base == digest({"text": "a"})
    others = [
        digest({"text": "b"}),
        digest({"text": "a"}, sampling={"seed": 1}),
        digest({"text": "a"}, answer={"choice": ["a"]}),
        digest({"text": "a", "image": png("red")}, **images),
        digest({"text": "a", "image": png("blue")}, **images),
    ]
    assert len({base, *others}) == 6


def test_echo_says_what_it_is() -> None:
    info = EchoEngine(job(engine={"kind": "echo", "max_num_seqs": 8})).info
    assert info.name.startswith("echo ")
    assert info.max_num_seqs == 8
