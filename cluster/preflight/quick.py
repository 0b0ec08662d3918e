"""The part of the preflight that `herd run` does by itself, when its books are open and before it takes engines."""

import socket

from cluster.connect import is_own_cluster
from cluster.preflight.findings import Answer, Finding, findings
from cluster.preflight.job import model_place, need_of, output_place
from cluster.preflight.nodes import ask_nodes
from cluster.preflight.probe import Place, Wanted, own_versions, take_probe
from pipeline.books import PreparedRun
from pipeline.errors import ConfigError

LIMIT_S = 30.0


def check_before_engines(run: PreparedRun) -> list[Finding]:
    """Warnings about the nodes of the connected cluster. A cluster that this process started is this machine, on which the
    model and the output were tried already; only the machine itself is looked at.

    A node that does not answer is a warning here: a run outlives nodes that die.

    Raises:
        ConfigError: with a sentence for each check that failed.
    """
    config = run.config
    if is_own_cluster():
        answers = [Answer(socket.gethostname(), take_probe(Wanted(gpus=False)))]
    else:
        output = output_place(config)
        is_local = run.output.store.is_local
        wanted = Wanted(
            gpus=False,
            model=model_place(config, run.model),
            writes=(output,),
            shared=(Place(f"{output.uri}/run.json", output.storage),) if is_local else (),
        )
        answers = ask_nodes(wanted, config.pool.accelerator, limit_s=LIMIT_S)
    found = findings(answers, need_of(config), own_versions(), silence="warn")
    if failed := [str(f) for f in found if f.verdict == "fail"]:
        raise ConfigError(
            "The cluster is not fit for this job:\n  " + "\n  ".join(failed),
            todo="\nMore is told by `herd doctor JOB --address ADDRESS`; `--no-preflight` runs all the same.",
        )
    return [f for f in found if f.verdict == "warn"]
