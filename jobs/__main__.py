"""`python -m jobs` is `herd`."""

from jobs.cli import main

main()
