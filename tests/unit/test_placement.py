from typing import Any

import pytest

from cluster.models import with_profile
from cluster.placement import Node, engine_resources, listed, place
from cluster.room import Patience
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, EngineStartError
from pipeline.host.process import EngineJob
from pipeline.placement import ACCELERATOR_LABEL, Gang, Placement
from pipeline.progress import Progress

from .helpers import job
from .test_host import engine_job

LABEL = frozenset({(ACCELERATOR_LABEL, "H100")})
CPU = Node(16, 0, id="cpu")
A100 = Node(96, 8, frozenset({"A100"}), frozenset({(ACCELERATOR_LABEL, "A100")}), "a100")


def h100(number: int, gpus: int = 8, cpus: float = 96, *, labels: bool = True) -> Node:
    return Node(cpus, gpus, frozenset({"H100"}), LABEL if labels else frozenset(), f"h100-{number}")


def gpu_job(tp: int = 1, pp: int = 1, *, pool: Any = None, **engine: Any) -> RunConfig:
    engine = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, **engine}
    return job(model="owner/other", engine=engine, pool={"accelerator": "H100", **(pool or {})})


def refused(config: RunConfig, *nodes: Node, addable: tuple[Node, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        place(config, nodes, addable)
    return str(caught.value)


def test_engine_that_fits_on_a_node_is_an_actor_with_its_gpus() -> None:
    placement = place(gpu_job(4, 2), [CPU, h100(1), A100])
    assert placement.gang is None
    assert placement.actor == {"num_cpus": 1.0, "num_gpus": 8, "label_selector": {ACCELERATOR_LABEL: "H100"}}


def test_engine_of_two_nodes_is_a_gang_of_its_tensor_parallel_groups() -> None:
    placement = place(gpu_job(8, 2), [h100(1), h100(2)])
    assert placement.gang == Gang(2, 8, "H100", by_label=True)
    assert placement.actor == {"num_cpus": 1.0, "label_selector": {ACCELERATOR_LABEL: "H100"}}
    assert (placement.gang.bundle, placement.gang.selector) == ({"GPU": 8.0}, {ACCELERATOR_LABEL: "H100"})


def test_gang_follows_the_nodes_there_are() -> None:
    fours = [h100(n, gpus=4) for n in range(2)]
    assert place(gpu_job(4, 2), fours).gang == Gang(2, 4, "H100", by_label=True)
    assert place(gpu_job(2, 4), fours).gang == Gang(4, 2, "H100", by_label=True)


def test_maverick_in_bf16_goes_over_two_nodes_and_in_fp8_on_one() -> None:
    def gang(model: str) -> Gang | None:
        config = with_profile(job(model=model, engine={}, pool={"accelerator": "H100"}))
        return place(config, [h100(1), h100(2)]).gang

    assert gang("maverick-bf16") == Gang(2, 8, "H100", by_label=True)
    assert gang("maverick") is None


def test_vllms_own_word_on_how_workers_start_is_followed() -> None:
    assert place(gpu_job(4, distributed_executor_backend="ray"), [h100(1)]).gang == Gang(1, 4, "H100", by_label=True)
    said = refused(gpu_job(8, 2, distributed_executor_backend="mp"), h100(1), h100(2))
    assert "16 H100 on one node do not fit" in said
    on_cpu = job(model="owner/other", engine={"distributed_executor_backend": "ray"})
    assert "it does not run on the CPU" in refused(on_cpu, CPU)


def test_accelerator_goes_by_rays_resource_where_nodes_have_no_label() -> None:
    placement = place(gpu_job(8, 2), [CPU, h100(1, labels=False), h100(2)])
    assert placement.actor["accelerator_type"] == "H100" and "label_selector" not in placement.actor
    assert placement.gang is not None and placement.gang.selector == {}
    assert placement.gang.bundle == {"GPU": 8.0, "accelerator_type:H100": 0.001}
    assert placement.reads["label_selector"] == {"ray.io/node-id": "!in(h100-1,h100-2)"}


def test_reads_keep_off_the_engines_nodes_unless_there_are_no_others() -> None:
    reads = place(gpu_job(8), [CPU, h100(1)]).reads
    assert reads["label_selector"] == {ACCELERATOR_LABEL: "!in(H100)"}
    assert reads["fallback_strategy"] == [{"label_selector": {}}]
    assert place(gpu_job(8), [h100(1)]).reads == {}
    assert place(job(), [CPU, CPU]).reads == {}


@pytest.mark.parametrize(
    ("config", "nodes", "parts"),
    [
        (gpu_job(8, pool={"min": 3}), [h100(1), h100(2), CPU], ["room for 2", "Missing: 1 x 8 H100 on one node"]),
        (gpu_job(8), [A100, CPU], ["room for 0", "Missing: 1 x 8 H100", "16 CPU, 0 GPU; 96 CPU, 8 GPU (A100)"]),
        (gpu_job(8, 2), [h100(1), A100], ["in 2 groups of 8, each on one node", "Missing: 1 x 8 H100"]),
        (gpu_job(8, 2, pool={"min": 2}), [h100(1), h100(2), h100(3)], ["room for 1", "Missing: 1 x 8 H100"]),
        (gpu_job(16), [h100(1), h100(2)], ["1 engine of 1 CPU and 16 H100 on one node", "2 x (96 CPU, 8 GPU (H100))"]),
        (gpu_job(1, pool={"min": 2}), [h100(1, cpus=1), CPU], ["room for 1", "Missing: CPU: 1 for each engine"]),
        (gpu_job(8), [h100(1, cpus=1)], ["Missing: CPU", "0.25 for reading"]),
        (gpu_job(8), [], ["The cluster's nodes: none"]),
    ],
)
def test_pool_that_can_never_fit_says_what_is_missing_and_what_there_is(
    config: RunConfig, nodes: list[Node], parts: list[str]
) -> None:
    said = refused(config, *nodes)
    for part in parts:
        assert part in said, said


def test_pool_may_count_on_what_an_autoscaler_can_add() -> None:
    bare = Node(96, 8, count=2)  # a type whose resources do not name the accelerator
    assert place(gpu_job(8, 2), [CPU], [bare]).gang == Gang(2, 8, "H100", by_label=True)
    named = Node(96, 8, frozenset({"H100"}), count=2)
    assert place(gpu_job(8), [CPU], [named]).actor["accelerator_type"] == "H100"
    said = refused(gpu_job(8, 2, pool={"min": 2}), CPU, addable=(bare,))
    assert "Missing: 2 x 8 H100" in said and "it can add: 96 CPU, 8 GPU" in said
    assert "Missing" in refused(gpu_job(8), CPU, addable=(Node(96, 8, frozenset({"A100"})),))


def test_engines_per_node_is_bounded_by_the_nodes_gpus() -> None:
    assert place(gpu_job(4, pool={"min": 1, "max": 9}), [h100(1), h100(2)]).engines_per_node(9) == 2
    assert place(gpu_job(8, 2), [h100(1), h100(2)]).engines_per_node(1) == 1
    assert Placement({}, hosts=2).engines_per_node(5) == 3


def test_plan_tells_all_that_an_engine_takes() -> None:
    assert engine_resources(gpu_job(8, 2)) == {"num_cpus": 1.0, "num_gpus": 16, "accelerator_type": "H100"}
    assert listed([CPU, h100(1), h100(2)]) == "16 CPU, 0 GPU; 2 x (96 CPU, 8 GPU (H100))"


def environment(devices: tuple[str, ...], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("NCCL_DEBUG", "of the node")
    made: EngineJob = engine_job()
    return EngineJob(made.config, made.columns, made.model, devices=devices, variables=variables).environment()


def test_engines_process_is_told_its_devices_and_the_runs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = {"NCCL_DEBUG": "of the run", "NCCL_SOCKET_IFNAME": "eth0"}
    made = environment(("4", "5"), given, monkeypatch)
    assert made["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert (made["NCCL_SOCKET_IFNAME"], made["NCCL_DEBUG"]) == ("eth0", "of the node")
    assert "CUDA_VISIBLE_DEVICES" not in environment((), given, monkeypatch)


def test_patience_ends_when_no_engine_has_a_live_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.room.live_nodes", lambda: [h100(1), CPU])
    monkeypatch.setattr("cluster.room.free_nodes", lambda: [CPU])
    config, now = gpu_job(8, 2, pool={"wait_s": 60}), [0.0]
    patience = Patience(config, place(config, [h100(1), h100(2)]), clock=lambda: now[0])

    def after(seconds: float, **figures: Any) -> None:
        now[0] += seconds
        patience.check(Progress(**figures))

    after(500)  # looks for known answers, with no engine wanted
    after(50, wants_engines=True)
    after(50, wants_engines=True, places={"one": ["h100-1"]})
    after(500, wants_engines=True, places={"one": ["h100-1"]})
    after(50, wants_engines=True, places={"one": ["h100-1", "h100-2"]})  # the second node is gone
    with pytest.raises(EngineStartError) as caught:
        after(11, wants_engines=True, places={"one": ["h100-1", "h100-2"]})
    assert "No engine found a place in 60 s. One takes 1 CPU and 16 H100 in 2 groups of 8" in str(caught.value)
    assert "Free now: 16 CPU, 0 GPU" in str(caught.value)
