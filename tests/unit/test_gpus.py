import pytest
from ray.util.accelerators import accelerators

from cluster.gpus import GPUS, Gpus, find_gpu, parse_gpus
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "nodes", "per_node"),
    [("8xH100", 1, 8), ("2x8xH100", 2, 8), ("16xH100", 2, 8), ("h100", 1, 1), ("4 x H100", 1, 4), ("4x2xH100", 4, 2)],
)
def test_gpus_written_as_people_write_them_are_read(text: str, nodes: int, per_node: int) -> None:
    assert parse_gpus(text) == Gpus(GPUS["H100"], nodes, per_node)


def test_gpus_print_as_they_are_read() -> None:
    for text in ("8xH100", "2x8xH200", "1xL40S"):
        assert str(parse_gpus(text)) == text


@pytest.mark.parametrize("text", ["", "8x", "0xH100", "2x0xH100", "-1xH100", "8xH100 and more", "2x2x2xH100"])
def test_gpus_that_are_no_number_of_gpus_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no number of GPUs"):
        parse_gpus(text)


def test_gpus_of_an_unknown_kind_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no figures for a GPU named `H1000`\. Did you mean `H100`"):
        parse_gpus("8xH1000")


def test_gpus_that_do_not_fill_nodes_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 GPUs do not fill nodes of 8"):
        parse_gpus("12xH100")


def test_gpu_accelerator_types_are_rays_own() -> None:
    known = {getattr(accelerators, name) for name in dir(accelerators) if name.isupper()}
    assert {gpu.accelerator_type for gpu in GPUS.values()} <= known


def test_gpu_is_found_by_rays_names() -> None:
    assert find_gpu("A100-80G") is GPUS["A100"]
    assert find_gpu("h100") is GPUS["H100"]
    assert find_gpu("T4") is None


def test_gpu_memory_is_less_than_its_name_says() -> None:
    for name, gigabytes in (("H100", 80 * 1.074), ("H200", 151), ("L40S", 48), ("B200", 192)):
        assert 0.9 < GPUS[name].memory_bytes / (gigabytes * 1e9) < 1.0
