"""Lets vLLM's Ray executor start on the CPU: its CPU platform names no resource that Ray could give a worker.

On the path of a test's processes, so that each of them finds the one attribute changed when it imports vLLM.
"""

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PLATFORM = "vllm.platforms.cpu"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != PLATFORM:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_name(module: ModuleType) -> None:
            load(module)
            module.CpuPlatform.ray_device_key = "GPU"  # type: ignore[attr-defined]

        spec.loader.exec_module = load_and_name  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
