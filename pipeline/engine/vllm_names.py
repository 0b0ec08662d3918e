"""The names of vLLM's engine arguments and sampling parameters, read from the installed vLLM's source.

Importing vLLM takes seconds and may want a GPU's driver; its argument classes are plain annotated fields, so their
names are read with `ast`. This makes a misspelt setting an error in the first second of a run, on any machine.
"""

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.config import EngineConfig
from pipeline.config_errors import nearest
from pipeline.errors import ConfigError


@lru_cache
def _fields(file: str, class_name: str) -> frozenset[str]:
    """Annotated public fields of a class in a file of the vLLM package; empty where vLLM is not installed."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    source = Path(spec.submodule_search_locations[0], file)
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            names = [s.target.id for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
            return frozenset(n for n in names if not n.startswith("_"))
    return frozenset()


def engine_arg_names() -> frozenset[str]:
    """Fields of vLLM's `EngineArgs`."""
    return _fields("engine/arg_utils.py", "EngineArgs")


def sampling_names() -> frozenset[str]:
    """Fields of vLLM's `SamplingParams`."""
    return _fields("sampling_params.py", "SamplingParams")


def check_names(engine: EngineConfig, sampling: dict[str, Any]) -> None:
    """Raises `ConfigError` for an engine argument or sampling parameter that the installed vLLM does not have. Without
    vLLM here the check is the engine actor's, which constructs the real classes."""
    for section, given, known in (
        ("engine", engine.vllm_args, engine_arg_names()),
        ("sampling", sampling, sampling_names()),
    ):
        for name in given:
            if known and name not in known:
                raise ConfigError(
                    f"vLLM has no {'engine argument' if section == 'engine' else 'sampling parameter'} "
                    f"`{name}`.{nearest(name, known)}",
                    where=f"{section}.{name}",
                )
