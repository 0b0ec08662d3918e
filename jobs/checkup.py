"""Checks this machine or a cluster, and a job on it, for `herd doctor`."""

import contextlib
import socket
import sys
from dataclasses import replace

from cluster.preflight.findings import Answer, Finding, Need, findings
from cluster.preflight.job import JobCheck, check_job, need_of, shared_mark
from cluster.preflight.probe import Wanted, own_versions, take_probe
from pipeline.config import RunConfig


def check_here(config: RunConfig | None) -> list[Finding]:
    """Findings about this machine, and about a job as far as it can be tried from here. Starts no Ray."""
    checked = _job(config)
    wanted = Wanted(model=checked.wanted.model, model_bytes=checked.wanted.model_bytes)
    return [*findings([Answer(socket.gethostname(), take_probe(wanted))], _need(config)), *checked.findings]


def check_cluster(config: RunConfig | None, address: str, limit_s: float) -> list[Finding]:
    """Findings about every live node of a cluster, then about a job; each node gets `limit_s` seconds to answer.

    Raises:
        HerdError: no cluster answers at the address.
    """
    from cluster.connect import connected
    from cluster.preflight.nodes import ask_nodes

    checked = _job(config)
    # Ray tells of workers that die on stdout, which is for findings
    with contextlib.redirect_stdout(sys.stderr), connected(address):
        if config is None:
            answers = ask_nodes(Wanted(), limit_s=limit_s)
        else:
            with shared_mark(config) as shared:
                wanted = replace(checked.wanted, shared=shared)
                answers = ask_nodes(wanted, config.pool.accelerator, limit_s=limit_s)
    return [*findings(answers, _need(config), own_versions()), *checked.findings]


def _job(config: RunConfig | None) -> JobCheck:
    return JobCheck([], Wanted()) if config is None else check_job(config)


def _need(config: RunConfig | None) -> Need:
    return Need() if config is None else need_of(config)
