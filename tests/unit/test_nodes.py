"""Nodes that a pool takes."""

from typing import Any

import pytest

from cluster.manifests.nodes import NodeCount, count_nodes
from pipeline.errors import ConfigError
from tests.unit.helpers import job


def counted(gpus_per_node: int, nodes: int | None = None, *, pool: dict[str, Any], **sizes: int) -> NodeCount:
    config = job(engine={"kind": "vllm", **sizes}, model="m/m", pool={"accelerator": "H100", **pool})
    return count_nodes(config, gpus_per_node, nodes)


def test_count_nodes_of_small_engines_shares_nodes() -> None:
    assert counted(8, pool={"min": 1, "max": 5}, tensor_parallel_size=4) == NodeCount(1, 3)
    assert counted(8, pool={"min": 8, "max": 9}, tensor_parallel_size=1) == NodeCount(1, 2)
    assert counted(8, pool={"min": 3}, tensor_parallel_size=3) == NodeCount(2, 2)  # two GPUs a node stay free


def test_count_nodes_of_engines_as_large_as_a_node_gives_each_its_own() -> None:
    assert counted(8, pool={"min": 2, "max": 4}, tensor_parallel_size=8) == NodeCount(2, 4)


def test_count_nodes_of_an_engine_over_nodes_keeps_tensor_parallel_groups_whole() -> None:
    assert counted(8, pool={"min": 1, "max": 2}, tensor_parallel_size=8, pipeline_parallel_size=2) == NodeCount(2, 4)
    assert counted(4, pool={"min": 1}, tensor_parallel_size=3, pipeline_parallel_size=3) == NodeCount(3, 3)


def test_count_nodes_of_engines_on_the_cpu_gives_each_a_node() -> None:
    assert count_nodes(job(pool={"min": 2, "max": 3}), 8) == NodeCount(2, 3)


def test_count_nodes_given_a_number_takes_it_unless_it_is_too_small() -> None:
    assert counted(8, 3, pool={"min": 1, "max": 9}, tensor_parallel_size=8) == NodeCount(3, 3)
    with pytest.raises(ConfigError, match=r"4 engine\(s\) of 8 GPU\(s\) take 4 node\(s\), and there are 3"):
        counted(8, 3, pool={"min": 4}, tensor_parallel_size=8)


def test_count_nodes_with_a_tensor_parallel_group_over_a_node_is_refused() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size 16 exceeds the 8 GPUs"):
        counted(8, pool={}, tensor_parallel_size=16)
