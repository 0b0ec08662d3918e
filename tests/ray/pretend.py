"""Asks the nodes of a cluster for probes of which one node's are made up: `python -m tests.ray.pretend ADDRESS NODE WHAT`.

Prints the findings as JSON, on its last line. A process of its own, since the tests' process is connected to another cluster.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import ray

from cluster.connect import connected
from cluster.preflight.findings import Need, findings
from cluster.preflight.nodes import ask_nodes
from cluster.preflight.probe import Probe, Wanted, own_versions, take_probe


def _hang(probe: Probe) -> Probe:
    time.sleep(3600)
    return probe


def _die(probe: Probe) -> Probe:
    os._exit(1)


PRETENCES: dict[str, Callable[[Probe], Probe]] = {
    "ray": lambda probe: replace(probe, versions={**probe.versions, "ray": "2.40.0"}),
    "shm": lambda probe: replace(probe, shm_bytes=64 * 2**20),
    "clock": lambda probe: replace(probe, clock_s=probe.clock_s + 3600),
    "hang": _hang,
    "die": _die,
}


def main(address: str, node: str, what: str) -> None:
    pretend = PRETENCES[what]

    def take(wanted: Wanted) -> Probe:
        probe = take_probe(wanted)
        return pretend(probe) if ray.get_runtime_context().get_node_id() == node else probe

    with connected(address):
        ask_nodes(Wanted(gpus=False), limit_s=240)  # processes start, which on a busy machine takes a while
        answers = ask_nodes(Wanted(gpus=False), take=take, limit_s=30 if what == "hang" else 240)
    found = findings(answers, Need(gpus=2, has_job=True), own_versions())
    print(json.dumps([f.to_json() for f in found if f.verdict != "pass"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
