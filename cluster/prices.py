"""What a GPU costs an hour: the user's price, the job's, or a small table of list prices with their date. Pure.

Prices are assumptions. They differ fourfold between providers and change monthly, so the table's low and high are part of
it, and one's own price is better: `--price H100=2.99`, or `cost: {gpu_hour_usd: 2.99}` in the job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.spread import Range


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for one GPU and hour, and where they are from."""

    usd: Range
    basis: str


_LISTED = "list prices on demand, no commitment, read 2026-09 to 2026-11"
# RunPod (runpod.io/pricing, community cloud), Lambda (lambda.ai/instances, 8 GPUs) and AWS (us-east-1: p4de, p5.48xlarge)
DEFAULT_PRICES = {
    "H100": Price(Range(2.69, 3.99, 6.88), f"{_LISTED}: RunPod 2.69, Lambda 3.99, AWS 6.88"),
    "A100": Price(Range(1.39, 2.79, 3.43), f"{_LISTED}: RunPod 1.39, Lambda 2.79, AWS 3.43"),
    "B200": Price(Range.exactly(6.69), f"{_LISTED}: Lambda 6.69, the only one read"),
}


def parse_prices(given: Sequence[str]) -> dict[str, float]:
    """`H100=2.99` as dollars by GPU.

    Raises:
        ConfigError: it does not read so, or is no price.
    """
    out = {}
    for text in given:
        name, equals, price = text.partition("=")
        try:
            usd = float(price.lstrip("$"))
        except ValueError:
            usd = -1.0
        if not (equals and name.strip() and 0 <= usd < float("inf")):
            raise ConfigError(
                f"`{text}` is no price", where="--price", todo="Write --price H100=2.99: USD a GPU and hour."
            )
        out[name.strip().upper()] = usd
    return out


def price_of(gpu: str, given: Mapping[str, float], of_job: float | None) -> Price | None:
    """The price of a kind of GPU: the command's, else the job's, else the table's; None where nobody knows one."""
    if gpu.upper() in given:
        usd = given[gpu.upper()]
        return Price(Range.exactly(usd), f"--price {gpu}={usd:g}")
    if of_job is not None:
        return Price(Range.exactly(of_job), f"cost.gpu_hour_usd = {of_job:g} of the job")
    return DEFAULT_PRICES.get(gpu.upper())
