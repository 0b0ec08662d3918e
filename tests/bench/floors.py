"""What the quick benchmarks must reach: a fifth below what the report shows (above, where small is good). Ratios that fall
below are a change's doing, and not the machine's."""

FLOORS = {
    "text/raw": 0.65,
    "choice/raw": 0.7,
    "echo/window-row": 0.4,
    "echo/session-row": 0.1,
    "cluster/commits": 0.72,
    "straggler/length": 1.5,
    "cache/engines": 1.0,
}
QUICK = ("text", "choice", "echo", "cluster", "straggler", "cache")
"""The benchmarks that `--quick` runs where none is named."""
