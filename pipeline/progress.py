"""The figures of a session while it goes on, as plain data that travels from the ledger to whoever watches."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.bottleneck import bottleneck
from pipeline.overview import Overview


@dataclass
class Progress:
    """Totals of this session, and what the run found at its start. `seconds` counts from the start of the session."""

    shards_total: int = 0
    shards_before: int = 0
    rows_total: int = 0
    rows_before: int = 0
    shards_done: int = 0
    shards_in_flight: int = 0
    rows_ok: int = 0
    rows_quarantined: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    read_s: float = 0.0
    """Seconds of read tasks, summed over tasks that run at the same time."""
    rows_read: int = 0
    bytes_read: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Quarantined rows by `stage/error_type`."""
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By engine what it told when it was ready, and its latest figures."""
    wants_engines: bool = False
    """Whether the run has come to the work that engines do; before it looks for answers that are known already."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """By engine actor the nodes where it last had the resources that an engine needs."""
    engine_deaths: int = 0
    events: list[str] = field(default_factory=list)
    failed_shards: dict[int, str] = field(default_factory=dict)

    @property
    def window_s(self) -> float:
        """The longest engine window of the session: from an engine's first admission to its latest answer."""
        return max((float(e.get("window_s", 0.0)) for e in self.engines.values()), default=0.0)

    @property
    def rows_per_s(self) -> float:
        """Rows that engines answered, over `window_s`; 0 before the first answer."""
        rows = sum(int(e.get("rows", 0)) for e in self.engines.values())
        return rows / self.window_s if self.window_s else 0.0

    @property
    def overview(self) -> Overview:
        """All engines at a glance, and what reading took."""
        return Overview.of(self.engines.values(), read_s=round(self.read_s, 2))

    @property
    def bottleneck(self) -> str | None:
        """What bounds the run and what to do; None while there is nothing to say."""
        return bottleneck(self.engines.values())

    def views(self) -> dict[str, Any]:
        """What `engines` comes to, as plain data: `overview` over all of them, `by_engine` for each that has answered, both
        with the keys of `Overview`; and `bottleneck`."""
        return {
            "overview": asdict(self.overview),
            "by_engine": {name: asdict(Overview.of([e])) for name, e in self.engines.items() if e.get("window_s")},
            "bottleneck": self.bottleneck,
        }

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data, with `views`."""
        return {
            **asdict(self),
            "window_s": self.window_s,
            "rows_per_s": round(self.rows_per_s, 1),
            **self.views(),
        }
