"""A Ray cluster of one or more nodes on this machine, in a process of its own: `python -m tests.chaos.nodes JSON`.

JSON is a list of keyword arguments for `Cluster.add_node`, the head first. The process prints a line of JSON for each
node, takes the arguments of further nodes on stdin, a line a node, and ends with its stdin.
"""

import json
import sys
from typing import Any

from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray.cluster_utils import Cluster

TRIES = 5


def main(nodes: list[dict[str, Any]]) -> None:
    ensure_token_if_auth_enabled()
    cluster = Cluster()
    for arguments in nodes:
        _add(cluster, arguments)
    for line in sys.stdin:
        _add(cluster, json.loads(line))
    cluster.shutdown()


def _add(cluster: Cluster, arguments: dict[str, Any]) -> None:
    for left in reversed(range(TRIES)):
        try:
            node = cluster.add_node(include_dashboard=False, dashboard_agent_listen_port=0, **arguments)
            break
        except Exception:  # Ray gives a node 30 s to start, which a busy machine may not
            if not left:
                raise
            if cluster.head_node is not None and not cluster.worker_nodes:
                cluster.remove_node(cluster.head_node)
    (raylet,) = node.all_processes["raylet"]
    print(json.dumps({"address": cluster.address, "id": node.node_id, "raylet": raylet.process.pid}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
