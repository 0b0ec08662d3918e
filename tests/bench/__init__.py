"""Benchmarks: the same work done by Herd and by a yardstick, in turn on one machine. `python -m tests.bench --help`."""
