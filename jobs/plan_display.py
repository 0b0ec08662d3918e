"""How `herd plan` looks to a person: a few lines by question, each with its range and what it is based on."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from jobs.display import short, stdout_console

Facts = Mapping[str, Any]
Line = tuple[str, str | Text]


def print_plan(facts: Facts) -> None:
    """Prints `jobs.planning.plan_facts`."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    groups = (_verdict(facts), _data(facts), _rows(facts), _assumed(facts))
    for number, group in enumerate(groups):
        lines = list(group)
        if number and lines:
            table.add_row("", "")
        for name, value in lines:
            table.add_row(name, value)
    console = stdout_console()
    console.print(table, highlight=False, markup=False)


def _verdict(facts: Facts) -> Iterator[Line]:
    yield "job", facts["name"]
    fits, found = facts["fits"], facts["fit"]
    if fits:
        words = f"{facts['weights_gib_per_gpu']:.1f} GiB of weights on each of {found['gpus']} {found['gpu']} ({found['layout']})"
        yield "fits", Text(f"yes: {words}, room for {short(facts['kv_token_capacity'])} tokens of KV cache", "green")
    elif fits is False:
        yield "fits", Text(f"no: {'; '.join(facts['reasons'])}", "bold red")
    else:
        yield "fits", f"not known: {'; '.join(facts['reasons'])}"
    engines = facts["engines"]
    each = f" of {engines['num_gpus']} {engines['accelerator_type']}" if "num_gpus" in engines else " on the CPU"
    note = f"; {engines['note']}" if "note" in engines else ""
    yield "engines", f"{engines['count']}{each}, by {engines['basis']}{note}"
    if facts["choice"]:
        yield "chosen", "\n".join(facts["choice"]["reasons"])
    unknown = facts["unknown"]
    if facts["eta_s"]:
        yield "time", f"{_range(facts['eta_s'], duration)}, engine start included"
        speed = facts["tokens_per_s"]
        kinds = [f"{_range(speed[k], short)} {k}" for k in speed] if speed else []
        yield (
            "speed",
            f"{_range(facts['rows_per_s'], short)} rows/s" + (f"; tokens/s: {', '.join(kinds)}" if kinds else ""),
        )
    else:
        yield "time", f"unknown: {unknown['eta_s']}"
    if facts["gpu_hours"]:
        money = f", {_range(facts['cost_usd'], dollars)}" if facts["cost_usd"] else f"; {unknown['cost_usd']}"
        yield "cost", f"{_range(facts['gpu_hours'], hours)} GPU-hours{money}"


def _data(facts: Facts) -> Iterator[Line]:
    size = bytes_in_words(facts["num_bytes"])
    yield "input", f"{facts['num_rows']:,} rows in {facts['num_files']:,} files, {size}, {facts['num_shards']:,} shards"
    prompt, images, answers = facts["prompt_tokens"], facts["image_tokens"], facts["output_tokens"]
    if prompt:
        yield "prompt tokens", _spread(prompt)
        if images and images["max"]:
            yield "of images", _spread(images)
    if answers:
        bound = "at most " if answers["is_upper_bound"] else ""
        each = f"{answers['per_row']['expected']:,.1f}".removesuffix(".0")
        yield "output tokens", f"{bound}{each} a row, {short(answers['total']['expected'])} in all: {answers['basis']}"


def _rows(facts: Facts) -> Iterator[Line]:
    refused, sample = facts["quarantined_rows"], facts["sample"]
    if refused is None:
        return
    if refused["high"]:
        style = "yellow" if refused["expected"] else ""
        yield "quarantined", Text(f"{_range(refused, count)} rows", style)
        for reason, about in facts["quarantine_reasons"].items():
            yield "", Text(f"{reason}: {_range(about['rows'], count)}, such as: {about['example'][:90]}", "yellow")
    else:
        yield "quarantined", "none"
    if facts["over_long_rows"] and facts["over_long_rows"]["high"]:
        yield (
            "too long",
            f"{_range(facts['over_long_rows'], count)} rows, for a context of {facts['max_model_len']:,} tokens",
        )
    if facts["duplicate_rows"] and facts["duplicate_rows"]["expected"]:
        yield "duplicates", f"{_range(facts['duplicate_rows'], count)} rows get another row's answer"
    whole = "every row" if sample["is_whole"] else f"{sample['rows']:,} rows of {sample['row_groups']:,} row groups"
    head = ", the first ones of heavy row groups" if sample["is_head"] else ""
    yield "looked at", f"{whole}{head}, in {facts['seconds']:.1f} s; tokens by {sample['tokens_by']}"


def _assumed(facts: Facts) -> Iterator[Line]:
    if facts["basis"]["speed"]:
        yield "speed by", facts["basis"]["speed"]
    if facts["basis"]["price"]:
        yield "price by", facts["basis"]["price"]
    for name in ("prompt_tokens", "image_tokens", "over_long_rows"):
        if name in facts["unknown"]:
            yield "unknown", facts["unknown"][name]
    yield "output", facts["output"]


def _spread(s: Facts) -> str:
    edge = f" ({short(s['total_low'])} to {short(s['total_high'])})" if s["total_low"] != s["total_high"] else ""
    return f"mean {s['mean']:,.0f}, p50 {s['p50']:,}, p90 {s['p90']:,}, p99 {s['p99']:,}, max {s['max']:,}; {short(s['total'])} in all{edge}"


def _range(r: Facts, shown: Any) -> str:
    low, expected, high = (shown(r[k]) for k in ("low", "expected", "high"))
    return str(expected) if low == high else f"{expected} ({low} to {high})"


def count(number: float) -> str:
    """Whole rows: 1,234."""
    return f"{number:,.0f}"


def hours(number: float) -> str:
    """GPU-hours with about two digits."""
    return f"{number:,.0f}" if number >= 20 else f"{number:,.2g}"


def dollars(usd: float) -> str:
    """$0.42, $1,234."""
    return f"${usd:,.0f}" if usd >= 100 else f"${usd:,.2f}"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.5 h, 2.1 days."""
    for size, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size or (unit == "min" and seconds >= 90):
            return f"{seconds / size:,.1f} {unit}" if seconds < 10 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def bytes_in_words(number: float) -> str:
    """12.3 MB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,.0f} bytes"
