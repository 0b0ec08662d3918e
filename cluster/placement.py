"""What one engine takes from the cluster, and whether the cluster has it. Pure, but for asking Ray what there is."""

from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.run import EngineResources

CPU_ENGINE_CPUS = 1.0
ECHO_ENGINE_CPUS = 0.01
IO_CPUS = 0.25  # one read or write task must fit beside the engines


def engine_resources(config: RunConfig) -> EngineResources:
    """CPUs, GPUs and accelerator type of one engine. An engine on GPUs takes as many as its parallel sizes multiply to."""
    if config.engine.kind == "echo":
        gpus = config.engine.num_gpus if config.pool.accelerator else 0
        return EngineResources(ECHO_ENGINE_CPUS, gpus, config.pool.accelerator)
    if config.pool.accelerator is None:
        return EngineResources(CPU_ENGINE_CPUS)
    return EngineResources(CPU_ENGINE_CPUS, config.engine.num_gpus, config.pool.accelerator)


def check_room(config: RunConfig, cluster: dict[str, float]) -> None:
    """Raises `ConfigError` if the cluster's total resources cannot hold `pool.min` engines and a task beside them.

    `cluster` is what `ray.cluster_resources()` returns. Without this check Ray would wait for ever.
    """
    need = engine_resources(config)
    engines = config.pool.min
    wants: dict[str, Any] = {"CPU": need.num_cpus * engines + IO_CPUS, "GPU": need.num_gpus * engines}
    missing = [f"{wanted:g} {name}" for name, wanted in wants.items() if wanted > cluster.get(name, 0.0)]
    if need.accelerator_type and f"accelerator_type:{need.accelerator_type}" not in cluster:
        missing.append(f"a node with {need.accelerator_type}")
    if missing:
        kinds = [k.split(":", 1)[1] for k in cluster if k.startswith("accelerator_type:")]
        has = f"{cluster.get('CPU', 0):g} CPU, {cluster.get('GPU', 0):g} GPU" + (f" ({', '.join(kinds)})" if kinds else "")
        raise ConfigError(
            f"{engines} engines need {' and '.join(missing)}; the cluster has {has}",
            where="pool",
            todo="Lower pool.min or the parallel sizes, or add nodes.",
        )
