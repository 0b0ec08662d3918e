import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

from jobs.bench import (
    Axis,
    Setting,
    Trial,
    bench,
    best,
    default_axes,
    gpus_on_a_node,
    sample_job,
    sampled,
    snippet,
    sweep,
    trial_of,
    with_points,
)
from jobs.launch import Launch
from pipeline.books import PreparedRun
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, EngineStartError, HerdError
from pipeline.progress import Progress
from pipeline.run import InterruptedRunError

from .helpers import job


def tried(axes: Sequence[Axis], speeds: dict[str, float], given: dict[str, Any] | None = None) -> list[Setting]:
    """The settings of a sweep in which each value adds so much speed, and a value without one fails."""

    def measure(setting: Setting) -> Trial:
        shown = [f"{k}={v}" for k, v in setting.items()]
        if any(s not in speeds for s in shown):
            return Trial(setting, failure="out of memory")
        return Trial(setting, rows_per_s=1 + sum(speeds[s] for s in shown))

    return [t.setting for t in sweep(axes, given or {}, measure)]


def test_sweep_tries_each_axis_with_the_best_of_those_before() -> None:
    axes = [Axis("a", (1, 2)), Axis("b", (1, 2))]
    assert tried(axes, {"a=1": 1, "a=2": 2, "b=1": 1, "b=2": 0}) == [
        {}, {"a": 1}, {"a": 2}, {"a": 2, "b": 1}, {"a": 2, "b": 2}
    ]  # fmt: skip


def test_sweep_goes_on_after_settings_that_fail_and_without_them() -> None:
    axes = [Axis("a", (1, 2)), Axis("b", (1,))]
    assert tried(axes, {"a=1": 1, "b=1": 1}) == [{}, {"a": 1}, {"a": 2}, {"a": 1, "b": 1}]


def test_sweep_does_not_try_what_the_job_has_already() -> None:
    assert tried([Axis("a", (1, 2))], {"a=2": 1}, {"a": 1}) == [{}, {"a": 2}]


def test_best_is_the_fastest_for_its_gpus() -> None:
    trials = [Trial({}, 1, 10.0), Trial({"tensor_parallel_size": 4}, 4, 30.0), Trial({"x": 1}, failure="no")]
    assert best(trials) is trials[0]


def test_best_of_trials_that_all_failed_is_none() -> None:
    assert best([Trial({}, failure="no")]) is None


def test_snippet_is_the_setting_in_a_job_file() -> None:
    assert yaml.safe_load(snippet(Trial({"max_num_seqs": 64}))) == {"engine": {"max_num_seqs": 64}}
    assert snippet(Trial({})) == ""


def test_axes_of_a_cpu_job_leave_parallel_sizes_alone() -> None:
    assert [a.key for a in default_axes(job(), 0)] == ["max_num_seqs", "max_num_batched_tokens"]


def test_axes_of_a_gpu_job_go_as_far_as_a_node_does() -> None:
    axes = {a.key: a.values for a in default_axes(job(pool={"accelerator": "H100"}), 4)}
    assert axes["tensor_parallel_size"] == (1, 2, 4)
    assert "enable_expert_parallel" in axes and "kv_cache_dtype" in axes
    assert "tensor_parallel_size" not in {a.key for a in default_axes(job(pool={"accelerator": "H100"}), 1)}


def test_points_of_the_user_replace_add_and_leave_out_axes() -> None:
    axes = [Axis("max_num_seqs", (1,)), Axis("max_num_batched_tokens", (1,))]
    found = with_points(axes, {"max_num_seqs": [7, 8], "max_num_batched_tokens": [], "kv_cache_dtype": ["fp8"]})
    assert found == [Axis("max_num_seqs", (7, 8)), Axis("kv_cache_dtype", ("fp8",))]


def test_gpus_are_those_of_the_largest_node_with_the_accelerator() -> None:
    nodes = [{"GPU": 8.0, "accelerator_type:A100": 1.0}, {"GPU": 4.0, "accelerator_type:H100": 1.0}, {"CPU": 2.0}]
    assert gpus_on_a_node(nodes, "H100") == 4
    assert gpus_on_a_node(nodes, "B200") == 0
    assert gpus_on_a_node(nodes, None) == 0


def test_sample_job_has_the_setting_and_an_output_of_its_own() -> None:
    begun = job(cache={"uri": "cached"}, evaluate={"gold": "label"}, engine={"kind": "echo", "max_num_seqs": 8})
    made = sample_job(begun, {"max_num_seqs": 64}, 512, "elsewhere")
    assert (made.engine.vllm_args, made.engine.kind, made.output.uri) == ({"max_num_seqs": 64}, "echo", "elsewhere")
    assert made.cache.uri is None and made.evaluate is None
    assert made.shard.max_rows == 128
    assert made.limits.max_quarantined_fraction == 1


@pytest.mark.parametrize(("rows", "shards"), [(20, [0, 99]), (30, [0, 49, 99]), (5, [0]), (5000, list(range(100)))])
def test_sample_is_shards_from_all_over_the_plan(rows: int, shards: list[int]) -> None:
    table = pa.table({"shard": range(100), "num_rows": [10] * 100})
    run = PreparedRun(*[None] * 6, table, frozenset(), None)  # type: ignore[arg-type]
    assert sampled(run, rows).table["shard"].to_pylist() == shards


def test_trial_counts_all_engines_and_their_gpus() -> None:
    config = job(pool={"min": 2, "accelerator": "H100"}, engine={"kind": "echo", "tensor_parallel_size": 2})
    engine = {"window_s": 10.0, "rows": 50, "busy_s": 8.0, "start_s": 3.0}
    figures = Progress(output_tokens=1000, engines={"a": engine, "b": {**engine, "start_s": 5.0}})
    trial = trial_of({"x": 1}, config, figures)
    assert (trial.gpus, trial.rows_per_s, trial.output_tokens_per_s) == (4, 10.0, 100.0)
    assert (trial.start_s, trial.busy_fraction, trial.score) == (5.0, 0.8, 2.5)


Runs = Callable[[dict[int | None, HerdError]], None]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Puts runs in the place of real ones: they leave a file and end well, or with the error for their max_num_seqs."""

    def put(errors: dict[int | None, HerdError]) -> None:
        def run_job(config: RunConfig, launch: Launch, **options: Any) -> Any:
            Path(config.output.uri).mkdir(parents=True)
            (Path(config.output.uri) / "run.json").write_text("{}")
            seats = config.engine.vllm_args.get("max_num_seqs")
            if seats in errors:
                raise errors[seats]
            return SimpleNamespace(figures=Progress(engines={"a": {"window_s": 1.0, "rows": seats or 1}}))

        monkeypatch.setattr("jobs.bench.run_job", run_job)
        monkeypatch.setattr("jobs.bench.connected", lambda *a, **k: contextlib.nullcontext())
        monkeypatch.setattr("jobs.bench.ray.nodes", list)

    return put


def benched(folder: Path) -> list[Trial]:
    config = job(output={"uri": str(folder / "out")})
    return bench(config, 512, {"max_num_seqs": [8, 16], "max_num_batched_tokens": []})


def test_bench_setting_that_fails_is_a_trial_with_its_reason(runs: Runs, tmp_path: Path) -> None:
    runs({16: EngineStartError("out of memory")})
    trials = benched(tmp_path)
    assert [(t.setting, t.rows_per_s, t.failure) for t in trials] == [
        ({}, 1.0, None),
        ({"max_num_seqs": 8}, 8.0, None),
        ({"max_num_seqs": 16}, 0.0, "out of memory"),
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("errors", "code", "said"),
    [
        ({None: ConfigError("no such column")}, 2, "no such column"),
        ({n: EngineStartError("out of memory") for n in (None, 8, 16)}, 4, "No setting could run: out of memory"),
        ({8: InterruptedRunError("Stopped")}, 130, "Stopped"),
    ],
    ids=["job", "all", "interrupt"],
)
def test_bench_that_cannot_go_on_says_why_and_leaves_nothing(
    runs: Runs, tmp_path: Path, errors: dict[int | None, HerdError], code: int, said: str
) -> None:
    runs(errors)
    with pytest.raises(HerdError, match=said) as caught:
        benched(tmp_path)
    assert caught.value.exit_code == code
    assert list(tmp_path.iterdir()) == []
