"""A Ray cluster of several nodes on this machine, in a process of its own: `python -m tests.chaos.nodes JSON`.

JSON is a list of keyword arguments for `Cluster.add_node`, the head first. The process prints a line of JSON for each
node, takes the arguments of further nodes on stdin, a line a node, and ends with its stdin.
"""

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster


def main(nodes: list[dict[str, Any]]) -> None:
    cluster = Cluster()
    for arguments in nodes:
        _add(cluster, arguments)
    for line in sys.stdin:
        _add(cluster, json.loads(line))
    cluster.shutdown()


def _add(cluster: Cluster, arguments: dict[str, Any]) -> None:
    node = cluster.add_node(include_dashboard=False, **arguments)
    (raylet,) = node.all_processes["raylet"]
    print(json.dumps({"address": cluster.address, "id": node.node_id, "raylet": raylet.process.pid}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
