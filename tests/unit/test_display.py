import pytest

from jobs.display import live_facts, print_summary, sentence, short
from pipeline.config import OutputConfig
from pipeline.progress import Progress

ENGINE = {
    "window_s": 10.0,
    "rows": 26_200,
    "busy_s": 9.7,
    "render_s": 4.0,
    "image_s": 3.0,
    "prepare_s": 2.0,
    "prompt_tokens": 184_000,
    "cached_tokens": 110_400,
    "output_tokens": 5_200,
    "running": 128,
    "waiting": 12,
    "kv_use": 0.45,
    "rows_reused": 31,
    "start_s": 2.0,
}
FULL = Progress(
    shards_total=1600,
    shards_done=160,
    rows_total=1_801_000,
    rows_ok=1_200_300,
    rows_quarantined=1_204,
    seconds=12.0,
    read_s=0.5,
    engines={"vllm #1": ENGINE},
)
TOTALS = {
    "run_id": "digits-1",
    "rows_in": 3,
    "rows_ok": 3,
    "rows_quarantined": 0,
    "prompt_tokens": 9,
    "output_tokens": 3,
}


def test_sentence_of_a_full_engine_has_all_figures_on_one_line() -> None:
    assert sentence(FULL) == (
        "160/1600 shards, 1,201,504/1,801,000 rows, 2,620 rows/s, 18.4k prompt + 520 output tokens/s, busy 97%, "
        "KV cache 45%, prefix hits 60%, 1,204 quarantined, 229 s left"
    )


def test_sentence_leaves_out_what_the_engine_does_not_tell() -> None:
    echo = {"window_s": 2.0, "rows": 10, "busy_s": 1.0, "output_tokens": 40}
    assert sentence(Progress(shards_total=2, rows_total=20, engines={"echo": echo})) == (
        "0/2 shards, 0/20 rows, 5 rows/s, 20 output tokens/s, busy 50%, 0 quarantined, 4 s left"
    )
    ready = Progress(shards_total=2, rows_total=20, engines={"echo": {"node": "0123"}})
    assert sentence(ready) == "0/2 shards, 0/20 rows, 0 rows/s, 0 quarantined"
    assert sentence(Progress(seconds=3.2)) == "starting engines (3 s)"


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (18_400, "18.4k"), (123_456, "123k"), (999_499, "999k"), (2.5e6, "2.5M")],
)
def test_short_numbers_take_few_characters(number: float, said: str) -> None:
    assert short(number) == said


def test_live_facts_of_a_run_under_way_tell_speed_engines_stages_and_bottleneck() -> None:
    facts = live_facts({"age_s": 3.2, **FULL.to_json()})
    assert facts["figures from"] == "3 s ago"
    assert facts["speed"] == "2,620.0 rows/s, 18.4k prompt + 520 output tokens/s"
    assert facts["engines"] == [
        "vllm #1: 2,620.0 rows/s, busy 97%, KV cache 45%, prefix hits 60%, 128 running, 12 waiting"
    ]
    assert facts["stage seconds"] == "read 0.5, render 4.0 (images 3.0), prepare 2.0, generate 9.7"
    assert facts["reused"] == "31 rows were answered with another row's answer"
    assert str(facts["bottleneck"]).startswith("Engines were busy 97% of the time")


def test_live_facts_of_a_run_that_only_starts_tell_their_age_and_no_speed() -> None:
    facts = live_facts({"age_s": 0.4, **Progress().to_json()})
    assert facts == {"figures from": "0 s ago", "stage seconds": "read 0.0"}


def printed(figures: Progress | None, capsys: pytest.CaptureFixture[str]) -> str:
    print_summary(TOTALS, output=OutputConfig(uri="out"), figures=figures, agreements=[], examples=[], key=None)
    return capsys.readouterr().out


def test_summary_of_a_run_says_where_its_time_went_and_what_bounds_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(FULL, capsys)
    assert "18.4k prompt + 520 output tokens/s, busy 97%, prefix hits 60%" in said
    assert "seconds of read 0.5, render 4.0 (images 3.0), prepare 2.0, generate 9.7" in said
    assert "31 rows were answered with another row's answer" in said
    assert "Engines were busy 97% of the time: they are the limit" in said


def test_summary_of_a_run_without_reuse_or_with_nothing_to_do_is_silent_about_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = Progress(shards_done=1, engines={"echo": {**ENGINE, "rows_reused": 0}})
    assert "another row's answer" not in printed(plain, capsys)
    nothing = printed(None, capsys)
    assert "nothing was left to do" in nothing and "bottleneck" not in nothing
