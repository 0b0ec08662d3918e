"""What a job would read, ask and cost, before any GPU is taken: footers, a sample of rows, the model's small files, earlier
runs' records. Starts nothing; a Ray cluster is looked at only where its address is given.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.architecture import Architecture
from cluster.estimate import Data, OutputTokens, Pace, cost, data_of, lengths_of, output_tokens
from cluster.fit import Fit
from cluster.gpus import GIB, Gpu, Gpus, find_gpu, parse_gpus
from cluster.models import architecture_of, with_profile
from cluster.placement import engine_resources, num_engines
from cluster.prices import price_of
from cluster.profiles import find_profile
from cluster.records import Measured, earlier_sessions, read_records
from cluster.speed import RowLengths, Speed, estimated_speed, measured_speed
from cluster.tokens import model_folder, token_counter
from jobs.choosing import fit_of, gpus_of, settled, usual_gpus
from jobs.root import plan_root
from pipeline.columns import Columns
from pipeline.config import RunConfig
from pipeline.engine.vllm import engine_args
from pipeline.engine.vllm_names import check_names
from pipeline.errors import before_the_run
from pipeline.footers import make_plan
from pipeline.sample import MAX_BYTES, choose
from pipeline.spread import Range
from pipeline.survey import survey


@dataclass(frozen=True)
class Question:
    """What `herd plan` is asked beyond the job."""

    sample_rows: int = 512
    seed: int = 0
    gpus: str | None = None
    """Such as `8xH100`; None: as many as the job's pool asks for."""
    address: str | None = None
    """A Ray cluster to count engines on."""
    like: Sequence[str] = ()
    """Outputs of earlier runs whose speed to go by, before the job's own."""
    prices: Mapping[str, float] = field(default_factory=dict)
    max_bytes: int = MAX_BYTES
    """Bytes of rows to go through at most, unless every row is asked for."""


@dataclass(frozen=True)
class Engines:
    """How many engines the job would have, and on what."""

    count: int
    basis: str
    gpu: Gpu | None = None
    """None on the CPU, and for GPUs that Herd has no figures for."""
    note: str = ""


@before_the_run()
def plan_facts(config: RunConfig, question: Question = Question()) -> dict[str, Any]:
    """All that is known of a job, as plain data; docs/plan.md describes the keys. Of an incremental job what it would take
    now; where no file is new, only its sizes, all 0.

    Raises:
        ConfigError: the job cannot run on this input, or the question names what is not there.
        StorageError: an input is missing, forbidden or out of reach.
    """
    config = with_profile(config)
    check_names(config.engine, config.sampling)
    if question.gpus is not None:
        accelerator = parse_gpus(question.gpus).gpu.accelerator_type
        config = config.model_copy(update={"pool": config.pool.model_copy(update={"accelerator": accelerator})})
    reasons: tuple[str, ...] = ()
    if config.engine.auto:
        config, reasons = settled(config, _gpus(config, question))
    of_root: dict[str, Any] = {}
    planned: tuple[Columns, pa.Schema, pa.Table] | None
    if config.input.incremental:
        of_root, planned = plan_root(config)
    else:
        planned = make_plan(config)
    if planned is None:
        sizes = {"num_files": 0, "num_rows": 0, "num_shards": 0, "num_bytes": 0}
        return {"name": config.name, **of_root, **sizes, "output": config.output.uri}
    columns, schema, table = planned
    per_shard = table["num_rows"]
    return {
        "name": config.name,
        **of_root,
        "num_files": len(pc.unique(table["input_uri"])),
        "num_rows": pc.sum(per_shard).as_py(),
        "num_shards": table.num_rows,
        "rows_per_shard": {"min": pc.min(per_shard).as_py(), "max": pc.max(per_shard).as_py()},
        "num_bytes": pc.sum(table["num_bytes"]).as_py(),
        "columns_read": [f"{f.name}: {f.type}" for f in schema],
        "columns_carried": list(columns.carry),
        **estimate_facts(config, columns, table, question),
        "choice": {"engine": config.engine.vllm_args, "reasons": list(reasons)} if reasons else None,
        "output": config.output.uri,
    }


def estimate_facts(config: RunConfig, columns: Columns, table: pa.Table, question: Question) -> dict[str, Any]:
    """What a planned job is expected to take, as plain data. Raises as `plan_facts`."""
    began = time.perf_counter()
    num_rows = int(pc.sum(table["num_rows"]).as_py())
    args, unknown = engine_args(config, ""), {}
    with model_folder(config) as folder:
        architecture, why_not = architecture_of(config, folder)
        counter = token_counter(config, folder, architecture.tiling if architecture else None)
        context = _context(config, architecture)
        found = survey(
            config,
            columns,
            choose(table, question.sample_rows, seed=question.seed, max_bytes=question.max_bytes),
            counter,
            total_rows=num_rows,
            max_model_len=context,
            max_images=None if config.engine.kind == "echo" else args["limit_mm_per_prompt"].get("image"),
        )
        choices = [counter.text_tokens(choice) for choice in config.answer.choice or () if config.engine.kind == "vllm"]
    data = data_of(found, max_model_len=context, seed=question.seed) if found.rows else None
    unknown.update(data.unknown if data else {"prompt_tokens": "no row was looked at (--look 0)"})
    records = _records(config, question)
    output = output_tokens(found.rows, _answer_tokens(records), choices, config.effective_sampling.get("max_tokens"))
    lengths = lengths_of(data, output) if data else None
    engines = _engines(config, question)
    fitted, reasons = _fit(config, args, architecture, why_not, engines)

    profile = find_profile(str(config.model))

    def speed_for(lengths: RowLengths | None) -> Speed | None:
        found = measured_speed(records, lengths)
        if found is None and fitted is not None and architecture is not None and lengths is not None:
            name, seqs = profile.name if profile else "", int(args["max_num_seqs"])
            found = estimated_speed(name, architecture, fitted, lengths, seqs)
        return found

    can_run = engines.count > 0 and (fitted is None or fitted.fits)
    speed = speed_for(lengths) if can_run else None
    pace = None
    taken = None
    if speed is not None:
        pace = Pace.of(speed_for(lengths.as_expected if lengths else None) or speed, lengths, engines.count)
        gpus_per_engine = fitted.layout.num_gpus if fitted else int(engine_resources(config).get("num_gpus", 0))
        accelerator = config.pool.accelerator
        price = price_of(accelerator, question.prices, config.cost.gpu_hour_usd) if accelerator else None
        taken = cost(num_rows, data, speed, engines=engines.count, gpus_per_engine=gpus_per_engine, price=price)
        if taken.gpu_hours is None:
            unknown["gpu_hours"] = "engines run on the CPU"
        elif taken.cost_usd is None:
            unknown["cost_usd"] = f"no price for {accelerator} is known; give --price {accelerator}=USD"
    else:
        unknown["eta_s"] = _why_no_eta(config, can_run, lengths is not None, why_not)
    return {
        **_engine_facts(config, engines, fitted, reasons),
        **_data_facts(data, output, context, num_rows),
        "rows_per_s": asdict(pace.rows_per_s) if pace else None,
        "tokens_per_s": asdict(pace)["tokens_per_s"] if pace else None,
        "eta_s": asdict(taken.eta_s) if taken else None,
        "gpu_hours": asdict(taken.gpu_hours) if taken and taken.gpu_hours else None,
        "cost_usd": asdict(taken.cost_usd) if taken and taken.cost_usd else None,
        "basis": {"speed": taken.speed_basis if taken else None, "price": taken.price_basis if taken else None},
        "unknown": unknown,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _context(config: RunConfig, architecture: Architecture | None) -> int | None:
    given = config.engine.vllm_args.get("max_model_len")
    return int(given) if given is not None else architecture.max_context if architecture else None


def _records(config: RunConfig, question: Question) -> list[Measured]:
    named = [read_records(uri, config.output.storage, config) for uri in question.like]
    own = earlier_sessions(config)
    return [*named, *([own] if own else [])]


def _answer_tokens(records: Sequence[Measured]) -> tuple[float, str] | None:
    return next(((r.output_tokens, r.where) for r in records if r.output_tokens), None)


def _engines(config: RunConfig, question: Question) -> Engines:
    ceiling, accelerator = config.pool.ceiling, config.pool.accelerator
    gpu = find_gpu(accelerator) if accelerator else None
    if question.gpus is not None:
        gpus, size = parse_gpus(question.gpus), config.engine.num_gpus
        room = gpus.nodes * (gpus.per_node // size) or gpus.total // size
        where = f"--gpus {question.gpus}"
    elif question.address is not None:
        from cluster.connect import connected
        from cluster.room import live_nodes

        with connected(question.address):
            room = num_engines(config, live_nodes())
        where = f"the Ray cluster at {question.address}"
    else:
        return Engines(ceiling, "the job's pool", gpu)
    note = f"{where} has room for {room} engines, and pool.max lets the job use {ceiling}" if room > ceiling else ""
    return Engines(min(ceiling, room), where, gpu, note)


def _gpus(config: RunConfig, question: Question) -> Gpus | None:
    """The GPUs to choose an engine for: those of the question, or a usual node of the kind that the job names."""
    if question.gpus is not None:
        return parse_gpus(question.gpus)
    if question.address is not None:
        from cluster.connect import connected
        from cluster.room import addable_nodes, live_nodes

        with connected(question.address):
            return gpus_of(live_nodes(), addable_nodes(), config.pool.accelerator)
    return usual_gpus(config.pool.accelerator)


def _fit(
    config: RunConfig, args: Mapping[str, Any], architecture: Architecture | None, why_not: str, engines: Engines
) -> tuple[Fit | None, list[str]]:
    """Whether an engine fits, and why not or why that is not known."""
    accelerator = config.pool.accelerator
    if accelerator is None:
        return None, ["engines run on the CPU; name GPUs with --gpus 8xH100 or pool.accelerator"]
    if architecture is None:
        return None, [why_not]
    if engines.gpu is None:
        return None, [f"Herd has no figures for a GPU named {accelerator}"]
    found = fit_of(config, engines.gpu)
    if found is None:
        return None, ["a setting of this engine changes its memory in ways that are not known here"]
    reasons = list(found.reasons)
    if not engines.count:
        reasons.append(f"an engine takes {config.engine.num_gpus} GPUs, and {engines.basis} has not so many for it")
    return found, reasons


def _why_no_eta(config: RunConfig, can_run: bool, is_counted: bool, why_not: str) -> str:
    if not can_run:
        return "it does not fit"
    if config.engine.kind == "echo":
        return "no record of an earlier run; nothing is published of the echo engine"
    if config.pool.accelerator is None:
        return "no record of an earlier run, and nothing is published for CPUs; name one with --like OUT"
    if not is_counted:
        return "no record of an earlier run, and speeds go by tokens, which were not counted"
    return why_not or "no record of an earlier run, and no figures for these GPUs"


def _engine_facts(config: RunConfig, engines: Engines, found: Fit | None, reasons: list[str]) -> dict[str, Any]:
    resources = engine_resources(config)
    about = {"count": engines.count, "basis": engines.basis, **({"note": engines.note} if engines.note else {})}
    return {
        "engines": {"min": config.pool.min, "max": config.pool.ceiling, **resources, **about},
        "fits": None if found is None else not reasons,
        "reasons": reasons,
        "weights_gib_per_gpu": round(found.weights_bytes_per_gpu / GIB, 2) if found else None,
        "kv_token_capacity": max(0, found.kv_token_capacity) if found else None,
        "fit": found.to_json() if found else None,
    }


def _data_facts(data: Data | None, output: OutputTokens | None, context: int | None, num_rows: int) -> dict[str, Any]:
    answers = None
    if output is not None:
        refused = data.quarantined_rows if data else Range.exactly(0)
        left = Range(*(num_rows - r for r in (refused.high, refused.expected, refused.low)))
        answers = {
            "per_row": asdict(output.per_row.rounded(2)),
            "total": asdict((output.per_row * left).rounded()),
            "basis": output.basis,
            "is_upper_bound": output.is_upper_bound,
        }
    known = {
        name: asdict(value) if (value := getattr(data, name, None)) is not None else None
        for name in ("prompt_tokens", "image_tokens", "over_long_rows", "quarantined_rows", "duplicate_rows")
    }
    return {
        **known,
        "quarantine_reasons": data.quarantine_reasons if data else None,
        "output_tokens": answers,
        "max_model_len": context,
        "sample": data.sample if data else None,
    }
