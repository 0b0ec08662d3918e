"""vLLM's synchronous engine behind Herd's seam: the one place that imports vllm.

The core runs inside this process unless `engine.core_process` asks otherwise: with short answers, a second process costs
more than it frees. Preparing (chat template, tokens, image preprocessing) is vLLM's own renderer, in the rendering
processes, so that the stepping thread receives finished engine inputs. Text is detokenised afterwards, a shard at a time.
"""

import contextlib
import copy
import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from PIL import Image

from pipeline.config import RunConfig
from pipeline.engine.base import EngineInfo
from pipeline.errors import EngineStartError, RowError, Stage
from pipeline.model import ModelRef
from pipeline.request import (
    Completion,
    Failure,
    Message,
    Prepared,
    Request,
    RequestImage,
    Sampling,
    request_sha256,
)

# Set always: arguments built outside vLLM's own front ends would silently fall to 2048 tokens and 128 sequences.
CPU_DEFAULTS = {"max_num_seqs": 128, "max_num_batched_tokens": 4096, "enforce_eager": True}
GPU_DEFAULTS = {"max_num_seqs": 512, "max_num_batched_tokens": 8192}
MAX_KEPT_PARAMS = 4096
WARM_UP = Sampling({"temperature": 0.0, "max_tokens": 2})
IMAGE_CACHE_GB = 0.5
"""What a rendering process keeps of preprocessed images, for those that come again."""
IMAGES_PER_PROMPT = 10  # vLLM's own limit is 999 and is profiled for; its authors advise at most 10


def engine_args(config: RunConfig, model_path: str) -> dict[str, Any]:
    """The arguments for `vllm.LLM`: the job's own over Herd's defaults. Pure.

    How workers are started is always said: left to itself vLLM picks `ray` wherever it meets a placement group."""
    given = config.engine.vllm_args
    on_cpu = config.pool.accelerator is None
    has_images = bool(config.input.images) or config.prompt.messages is not None
    return {
        "model": model_path,
        "seed": 0,
        "disable_log_stats": True,
        "distributed_executor_backend": "mp" if config.engine.num_gpus > 1 else "uni",
        "limit_mm_per_prompt": {"image": IMAGES_PER_PROMPT if has_images else 0},
        **(CPU_DEFAULTS if on_cpu else GPU_DEFAULTS),
        **given,
    }


def environment(config: RunConfig) -> dict[str, str]:
    """Environment variables that vLLM reads when it is imported; what the user has set wins. Pure."""
    out = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if config.engine.core_process else "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.pool.accelerator is None:
        out["VLLM_CPU_KVCACHE_SPACE"] = "1"
        # threads are bound to cores only for several CPU workers, which would otherwise share one set
        size = config.engine.num_gpus
        out["VLLM_CPU_OMP_THREADS_BIND"] = "nobind" if size == 1 else _bind(size, os.cpu_count() or 1)
    return out


def _bind(workers: int, cores: int) -> str:
    """Core ranges for CPU workers, such as `0|1` or `0-3|4-7`; workers share a core where there are too few."""
    share = max(1, cores // workers)
    firsts = [(w * share) % cores for w in range(workers)]
    return "|".join(str(f) if share == 1 else f"{f}-{f + share - 1}" for f in firsts)


def load(config: RunConfig) -> None:
    """Sets the environment for vLLM and imports what an engine and its rendering processes share.

    Raises:
        EngineStartError: vLLM is not installed.
    """
    for key, value in environment(config).items():
        os.environ.setdefault(key, value)
    try:
        import_vllm()
    except ImportError as e:
        raise EngineStartError(
            f"vLLM is not installed on this node: {e}", todo="Install the `gpu` or the `cpu` extra of herd-batch."
        ) from None
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])


def import_vllm() -> None:
    """Imports those parts of vLLM that take seconds and touch no device."""
    import vllm  # noqa: F401
    from vllm import renderers  # noqa: F401
    from vllm.engine import arg_utils  # noqa: F401
    from vllm.v1.engine import core, llm_engine  # noqa: F401


class _Params:
    """vLLM's sampling parameters by what they are made from; most rows of a run share one object."""

    def __init__(self, config: RunConfig) -> None:
        from vllm.exceptions import VLLMError
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        answer = config.answer
        kinds = {"choice": answer.choice, "regex": answer.regex, "json": answer.json_schema}
        shape = {k: v for k, v in kinds.items() if v is not None}
        self.shape = json.dumps(shape, sort_keys=True)
        self._make = partial(
            SamplingParams,
            structured_outputs=StructuredOutputsParams(**shape) if shape else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # vLLM's copy of it for each row may share what no row changes
        )
        self._refusals = (VLLMError, ValueError, TypeError)
        self._made: dict[str, Any] = {}

    def of(self, key: str, values: dict[str, Any]) -> Any:
        """The parameters for a row's sampling, whose canonical form is the key.

        Raises:
            RowError: `bad_sampling`.
        """
        if len(self._made) > MAX_KEPT_PARAMS:
            self._made.clear()  # a seed of its own for each row must not fill the memory
        if key not in self._made:
            # vLLM needs the text itself only to look for stop strings in it
            wants_text = bool(values.get("stop")) or values.get("skip_special_tokens") is False
            try:
                self._made[key] = self._make(**values, detokenize=wants_text)
            except self._refusals as e:
                raise RowError(Stage.RENDER, "bad_sampling", _first_lines(e)) from None
        return self._made[key]


class VllmPreparer:
    """vLLM's renderer. Implements `pipeline.engine.base.Preparer`."""

    def __init__(self, config: RunConfig, renderer: Any, max_model_len: int) -> None:
        from vllm.exceptions import VLLMError
        from vllm.renderers import ChatParams

        self._renderer, self._max_model_len, self._params = renderer, max_model_len, _Params(config)
        self._vllm_error = VLLMError
        self._chat_params = ChatParams(
            chat_template_kwargs={"add_generation_prompt": True, "tokenize": False},
            mm_processor_kwargs=config.engine.vllm_args.get("mm_processor_kwargs"),
        )
        self._tokenize_params = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)

    @classmethod
    def beside_the_engine(cls, config: RunConfig, model_path: str) -> "VllmPreparer":
        """One for a rendering process, with a renderer of its own, warmed up."""
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.renderers import renderer_from_config

        torch.set_num_threads(1)
        args = {"mm_processor_cache_gb": IMAGE_CACHE_GB, **engine_args(config, model_path)}
        found = EngineArgs(**args).create_engine_config()
        preparer = cls(config, renderer_from_config(found), int(found.model_config.max_model_len))
        preparer.warm_up(has_images=args["limit_mm_per_prompt"].get("image", 0) > 0)
        return preparer

    def warm_up(self, *, has_images: bool) -> None:
        """Prepares a text, and an image, so that the first row does not pay for what is made once."""
        parts: list[str | RequestImage] = ["Hello"]
        if has_images:
            parts.insert(0, RequestImage(Image.new("RGB", (64, 64)), "warm-up"))
        with contextlib.suppress(RowError):  # a context too short for a greeting, or a model that sees nothing
            self.prepare(Request((Message("user", tuple(parts)),), WARM_UP))

    def prepare(self, request: Request) -> Prepared:
        sampling = request.sampling
        self._params.of(sampling.canonical, sampling.values)
        conversation = [_openai(message) for message in request.messages]
        try:
            # the cache of a process that shares it with no engine
            _, (inputs,) = self._renderer.render_chat(
                [conversation], self._chat_params, self._tokenize_params, skip_mm_cache=True
            )
        except self._vllm_error as e:
            if getattr(e, "parameter", None) in ("input_tokens", "input_text"):
                raise _too_long(str(e)) from None
            raise RowError(Stage.RENDER, "request_refused", _first_lines(e)) from None
        except Exception as e:  # a chat template or an image processor, run over a stranger's data
            stage = Stage.IMAGE if request.images else Stage.RENDER
            raise RowError(stage, "preprocessing_failed", f"{type(e).__name__}: {_first_lines(e)}") from None
        ids = inputs["prompt_token_ids"]
        if len(ids) >= self._max_model_len:
            raise _too_long(f"the prompt has {len(ids)} tokens and the context holds {self._max_model_len}")
        digest = request_sha256(ids, request.images, sampling.canonical + self._params.shape)
        return Prepared(ids, digest, (inputs, sampling.canonical, sampling.values))


class VllmEngine:
    """See the module. Implements `pipeline.engine.base.Engine`.

    Raises:
        EngineStartError: vLLM refuses the model or the settings.
    """

    def __init__(self, config: RunConfig, model: ModelRef, model_path: str, seats: Any = None) -> None:
        """`seats` is a placement group with a GPU for each worker, bundle i for rank i; without one the workers are
        processes on this node."""
        import torch
        import vllm
        from vllm.exceptions import VLLMError

        if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
            torch.set_num_threads(int(threads))  # OpenMP read it when torch was imported, for whichever engine
        # images come preprocessed, from processes with caches of their own
        args = {**engine_args(config, model_path), "mm_processor_cache_gb": 0}
        try:
            self._engine = _engine(args, seats)
        except Exception as e:  # pydantic, torch, transformers, vLLM: all say why in their message
            raise EngineStartError(
                f"vLLM could not start: {type(e).__name__}: {_first_lines(e)}", where=model.name
            ) from e
        self._vllm_error, self._params = VLLMError, _Params(config)
        self.tokens = self._prompt_tokens = self._cached_tokens = 0
        # out of reach where the core is a process of its own
        self._scheduler = getattr(getattr(self._engine.engine_core, "engine_core", None), "scheduler", None)
        self._count_tokens(self._engine.engine_core)
        self._max_model_len = int(self._engine.model_config.max_model_len)
        self._decoder = copy.deepcopy(self._engine.get_tokenizer())  # vLLM's own is in use on another thread
        settings = {k: v for k, v in args.items() if k != "model"}
        self.info = EngineInfo(
            f"vllm {vllm.__version__}",
            int(args["max_num_seqs"]),
            {**settings, "max_model_len": self._max_model_len, "pid": os.getpid()},
        )
        self._warm_up(VllmPreparer(config, self._engine.renderer, self._max_model_len))

    def _count_tokens(self, core: Any) -> None:
        """Has each step's outputs counted on their way: `step` itself only shows requests that have ended."""
        get_output = core.get_output

        def counted() -> Any:
            outputs = get_output()
            self.tokens += sum(len(output.new_token_ids) for output in outputs.outputs)
            return outputs

        core.get_output = counted

    def _warm_up(self, preparer: VllmPreparer) -> None:
        """Answers one short text, so that the first row does not pay for kernels, grammars and tokenizers."""
        with contextlib.suppress(RowError):  # a context too short for a greeting is no reason not to start
            self.add(0, preparer.prepare(Request((Message("user", ("Hello",)),), WARM_UP)))
            while self.has_work():
                self.step()

    def add(self, key: int, prepared: Prepared) -> None:
        inputs, canonical, values = prepared.payload
        if len(prepared.prompt_token_ids) >= self._max_model_len:  # which vLLM may have fitted to its memory
            ids = len(prepared.prompt_token_ids)
            raise _too_long(f"the prompt has {ids} tokens and the context holds {self._max_model_len}")
        try:
            self._engine.add_request(str(key), inputs, self._params.of(canonical, values))
        except (self._vllm_error, ValueError, TypeError) as e:
            raise RowError(Stage.ENGINE, "request_refused", _first_lines(e)) from None

    def step(self) -> list[tuple[int, Completion | Failure]]:
        ended: list[tuple[int, Completion | Failure]] = []
        for output in self._engine.step():
            if not output.finished:
                continue
            answer = output.outputs[0]
            key = int(output.request_id)
            if answer.finish_reason in ("abort", "error"):
                failure = Failure(Stage.ENGINE, f"engine_{answer.finish_reason}", "vLLM gave the request up")
                ended.append((key, failure))
                continue
            text = answer.text if answer.text else None
            prompt = output.prompt_token_ids or ()
            self._prompt_tokens += len(prompt)
            self._cached_tokens += output.num_cached_tokens or 0
            ended.append((key, Completion(text, answer.token_ids, str(answer.finish_reason), len(prompt))))
        return ended

    def has_work(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def gauges(self) -> dict[str, float]:
        counted: dict[str, float] = {
            "output_tokens": self.tokens,
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached_tokens,
        }
        if self._scheduler is None:
            return counted
        return {
            **counted,
            "running": len(self._scheduler.running),
            "waiting": len(self._scheduler.waiting),
            "kv_use": self._scheduler.kv_cache_manager.usage,
        }

    def texts(self, completions: Sequence[Completion]) -> list[str]:
        raw = [i for i, c in enumerate(completions) if c.text is None]
        tokens = [list(completions[i].token_ids) for i in raw]
        # of an empty batch the tokenizer makes one empty text
        decoded = self._decoder.batch_decode(tokens, skip_special_tokens=True) if tokens else []
        out = [c.text or "" for c in completions]
        for i, text in zip(raw, decoded, strict=True):
            out[i] = text
        return out


def _engine(args: dict[str, Any], seats: Any) -> Any:
    """vLLM's synchronous engine, as `vllm.LLM` would make it but for its settings that only show once they are put
    together: with its workers in a placement group, which `LLM` would only find if its process were started in it (and make
    another that may tear a tensor parallel group apart); and with one group of KV blocks where that is enough."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    if seats is not None:
        os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(str(rank) for rank in range(len(seats.bundle_specs)))
        args = {**args, "distributed_executor_backend": "ray"}
    found = EngineArgs(**args).create_engine_config(UsageContext.LLM_CLASS)
    if seats is not None:
        found.parallel_config.placement_group = seats
    if "disable_hybrid_kv_cache_manager" not in args and _needs_one_group(found.model_config):
        found.scheduler_config.disable_hybrid_kv_cache_manager = True
    return LLMEngine.from_vllm_config(
        found, usage_context=UsageContext.LLM_CLASS, disable_log_stats=args["disable_log_stats"]
    )


def _needs_one_group(model: Any) -> bool:
    """Whether no layer's chunk of attention is shorter than the context. All layers then keep the same tokens, and to
    manage their blocks in four groups, as vLLM does for Llama 4, took a sixth of a step on the CPU for nothing."""
    chunk = getattr(model, "attention_chunk_size", None)
    return chunk is not None and chunk >= model.max_model_len


def _too_long(message: str) -> RowError:
    return RowError(Stage.RENDER, "prompt_too_long", message)


def _openai(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        return {"role": message.role, "content": "\n".join(str(p) for p in message.parts)}
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        # by its digest vLLM's caches know an image again without hashing its pixels
        else {"type": "image_pil", "image_pil": part.pixels, "uuid": part.sha256}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _first_lines(e: BaseException, limit: int = 500) -> str:
    text = " ".join(str(e).split())
    return text if len(text) <= limit else text[:limit] + "..."
