"""What of Ray's own words reaches the terminal."""

import sys

import pytest

from cluster.connect import _WithoutRetries


def test_calls_that_ray_makes_again_are_not_told_and_the_rest_is(capsys: pytest.CaptureFixture[str]) -> None:
    out = _WithoutRetries()
    retried = (
        "(raylet) Task f failed. There are infinite retries remaining, so the task will be retried. Error: Traceback"
    )
    print("before", file=out)
    print(retried, file=out)
    print("(raylet) 1 worker was killed for want of memory", file=out, flush=True)
    print(retried, file=out)
    print(retried, file=out)
    print(file=out)
    print("after", file=out)
    said = capsys.readouterr()
    assert said.err == "before\n(raylet) 1 worker was killed for want of memory\n\nafter\n"
    assert said.out == "" and sys.stdout is not out
