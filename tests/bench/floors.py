"""What the quick benchmarks must reach: a fifth below what the report shows (above, where small is good). Ratios that fall
below are a change's doing, and not the machine's."""

FLOORS = {
    "text/raw": 0.7,
    "choice/raw": 0.95,
    "echo/window-row": 0.2,
    "echo/session-row": 0.1,
    "echo/window-batch": 0.16,
    "echo/session-batch": 0.08,
    "cluster/commits": 0.8,
    "straggler/length": 1.4,
    "cache/engines": 1.0,
}
QUICK = ("text", "choice", "echo", "cluster", "straggler")
"""The benchmarks that `--quick` runs where none is named."""
