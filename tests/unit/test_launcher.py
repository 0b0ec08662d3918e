"""The file for Ray's cluster launcher, as Ray itself checks it."""

import copy
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.manifests.launcher import NOTES, Aws, launcher_config
from cluster.manifests.site import Site
from cluster.manifests.text import yaml_text
from pipeline.errors import ConfigError
from tests.unit.test_kuberay import sent

AWS = Aws("ami-0123456789abcdef0", instance_profile="arn:aws:iam::1:instance-profile/herd", placement_group="near")
SITE = Site("registry/herd:1", spot="karpenter", env=(("NOTE", "it's 100% {{ fine }}"),))


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` takes it: written, read, filled up with Ray's defaults and checked, all offline."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    ready: dict[str, Any] = prepare_config(yaml.safe_load(yaml_text([config], notes=NOTES)))
    validate_config(ready)
    return ready


@pytest.mark.parametrize("model", ["scout", "maverick", "maverick-bf16", None])
def test_launcher_config_passes_rays_own_check(model: str | None) -> None:
    ready = prepared(launcher_config(sent(model), SITE, AWS))
    assert ready["head_node_type"] == "head"
    assert not any("ray-wheels" in command for command in ready["head_setup_commands"])  # the image brings Ray


def test_launcher_config_with_an_unknown_key_fails_rays_own_check() -> None:
    config = copy.deepcopy(launcher_config(sent(), SITE, AWS))
    config["available_node_types"]["workers"]["min_wokers"] = 1
    with pytest.raises(jsonschema.ValidationError):
        prepared(config)


def test_launcher_config_starts_the_nodes_of_the_pool_on_spot_and_the_head_not() -> None:
    config = launcher_config(sent(pool={"accelerator": "H100", "min": 1, "max": 3}), SITE, AWS)
    types = config["available_node_types"]
    head, workers = types["head"]["node_config"], types["workers"]["node_config"]
    assert (types["workers"]["min_workers"], types["workers"]["max_workers"], config["max_workers"]) == (1, 3, 3)
    assert (workers["InstanceType"], workers["InstanceMarketOptions"]) == ("p5.48xlarge", {"MarketType": "spot"})
    assert (workers["Placement"], workers["IamInstanceProfile"]) == (
        {"GroupName": "near"},
        {"Arn": "arn:aws:iam::1:instance-profile/herd"},
    )
    assert types["workers"]["resources"] == {"GPU": 8, "accelerator_type:H100": 1}
    assert types["workers"]["labels"] == {"ray.io/market-type": "spot", "ray.io/accelerator-type": "H100"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head and "Placement" not in head


def test_launcher_config_gives_the_container_shared_memory_a_cache_and_its_environment() -> None:
    options = launcher_config(sent(), SITE, AWS)["docker"]["run_options"]
    assert "--shm-size=256g" in options
    assert "-v /opt/dlami/nvme/herd:/cache" in options
    assert "-e HERD_CACHE=/cache/herd" in options
    assert """-e 'NOTE=it'"'"'s 100% {{ fine }}'""" in options  # the launcher hands options to a shell as they stand


def test_launcher_config_without_gpus_takes_a_plain_instance() -> None:
    types = launcher_config(sent(None), Site("registry/herd:1"), AWS)["available_node_types"]
    assert types["workers"]["node_config"]["InstanceType"] == "m7i.4xlarge"
    assert types["workers"]["labels"] == {"ray.io/market-type": "on-demand"}


def test_launcher_config_for_gpus_of_no_known_instance_wants_a_type() -> None:
    with pytest.raises(ConfigError, match="No instance type is known with 8 L40S"):
        launcher_config(sent(pool={"accelerator": "L40S"}), SITE, AWS)
    named = Aws(AWS.ami, instance_type="g6e.48xlarge")
    workers = launcher_config(sent(pool={"accelerator": "L40S"}), SITE, named)["available_node_types"]["workers"]
    assert workers["node_config"]["InstanceType"] == "g6e.48xlarge"


def test_aws_with_what_is_no_ami_or_region_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no AMI"):
        Aws("latest")
    with pytest.raises(ConfigError, match="is no region"):
        Aws(AWS.ami, region="us-west-2; rm")
