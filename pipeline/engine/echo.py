"""The engine without a model: answers each prompt with a function of it, and misbehaves where it is told to.

For what a model cannot show (faults, scale, schedules) and for trying a job file on a laptop. Text jobs get the prompt's
own words back, up to `max_tokens`; `choice` jobs one of the choices, by a hash; `json_schema` jobs the smallest document
that the simple parts of the schema allow. Tokens are words. At most `max_num_seqs` requests are under way at a time; the
others wait, as they do in an engine with a model.
"""

import hashlib
import heapq
import json
import math
import os
import re
import signal
import time
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any

from jsonschema.validators import validator_for

from pipeline import __version__
from pipeline.config import RunConfig
from pipeline.engine.base import EngineInfo
from pipeline.errors import ConfigError, RowError, Stage
from pipeline.request import Completion, Failure, Prepared, Request, request_sha256

IDLE_S = 0.002


class EchoPreparer:
    """Implements `pipeline.engine.base.Preparer`."""

    def __init__(self, config: RunConfig) -> None:
        self._max_model_len = config.engine.vllm_args.get("max_model_len")
        self._shape = json.dumps(config.answer.model_dump(), sort_keys=True)

    def prepare(self, request: Request) -> Prepared:
        text = request.text
        words = text.split()
        if self._max_model_len is not None and len(words) >= self._max_model_len:
            raise RowError(
                Stage.RENDER,
                "prompt_too_long",
                f"the prompt has {len(words)} tokens and the context holds {self._max_model_len}",
            )
        ids = [zlib.crc32(w.encode()) for w in words]
        shape = request.sampling.canonical + self._shape
        return Prepared(ids, request_sha256(ids, request.images, shape), (text, request.sampling.values["max_tokens"]))


class EchoEngine:
    """See the module. Implements `pipeline.engine.base.Engine`."""

    def __init__(self, config: RunConfig, workers: Sequence[tuple[str, list[str]]] | None = None) -> None:
        """`workers` says by rank where workers would be, as node and GPUs, and goes into the engine's facts."""
        if config.answer.kind == "regex":
            raise ConfigError(
                "The echo engine cannot make text for a regex", where="answer.regex", todo="Use text, choice or vllm."
            )
        echo = config.engine.echo
        self._answer = config.answer
        self._latency_s, self._token_s = echo.latency_s, echo.token_s
        self._die, self._hang, self._fail = (
            re.compile(p) if p else None for p in (echo.die_on, echo.hang_on, echo.fail_on)
        )
        self._waiting: deque[tuple[int, Completion]] = deque()
        self._due: list[tuple[float, int, Completion]] = []
        self._hung: set[int] = set()
        self.tokens = 0
        max_num_seqs = int(config.engine.vllm_args.get("max_num_seqs", 256))
        facts = {"max_num_seqs": max_num_seqs, "pid": os.getpid(), **({} if workers is None else {"workers": workers})}
        self.info = EngineInfo(f"echo {__version__}", max_num_seqs, facts)

    def add(self, key: int, prepared: Prepared) -> None:
        text, max_tokens = prepared.payload
        if self._die and self._die.search(text):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fail and self._fail.search(text):
            raise RowError(Stage.ENGINE, "echo_fail_on", f"the prompt matches fail_on: {self._fail.pattern}")
        if self._hang and self._hang.search(text):
            self._hung.add(key)
            return
        words = self._reply(text).split(" ")
        kept = words[:max_tokens]
        reason = "stop" if len(kept) == len(words) else "length"
        done = Completion(" ".join(kept), range(len(kept)), reason, len(prepared.prompt_token_ids))
        self._waiting.append((key, done))
        self._begin(time.monotonic())

    def _begin(self, now: float) -> None:
        while self._waiting and len(self._due) < self.info.max_num_seqs:
            key, done = self._waiting.popleft()
            seconds = self._latency_s + self._token_s * len(done.token_ids)
            heapq.heappush(self._due, (now + seconds, key, done))

    def step(self) -> list[tuple[int, Completion | Failure]]:
        now = time.monotonic()
        out: list[tuple[int, Completion | Failure]] = []
        while self._due and self._due[0][0] <= now:
            _, key, done = heapq.heappop(self._due)
            self.tokens += len(done.token_ids)
            out.append((key, done))
        self._begin(now)
        if not out:
            wait = self._due[0][0] - now if self._due else IDLE_S
            time.sleep(min(wait, IDLE_S))
        return out

    def has_work(self) -> bool:
        return bool(self._due or self._waiting or self._hung)

    def gauges(self) -> dict[str, float]:
        running = len(self._due) + len(self._hung)
        return {"output_tokens": self.tokens, "running": running, "waiting": len(self._waiting)}

    def texts(self, completions: Sequence[Completion]) -> list[str]:
        return [c.text or "" for c in completions]

    def _reply(self, text: str) -> str:
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        if self._answer.choice is not None:
            return self._answer.choice[number % len(self._answer.choice)]
        if self._answer.json_schema is not None:
            return json.dumps(example_of(self._answer.json_schema, number), separators=(",", ":"))
        return text


def example_of(schema: dict[str, Any], number: int = 0) -> Any:
    """A document for the simple parts of a schema; `number` chooses.

    Seen are const, enum, type, properties, items, bounds, `minLength` and `minItems`; a schema that asks for more gets
    a document that does not check, and its rows are quarantined.
    """
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][number % len(schema["enum"])]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    match kind:
        case "object":
            return {k: example_of(s, number) for k, s in schema.get("properties", {}).items()}
        case "array":
            return [example_of(schema.get("items", {}), number)] * schema.get("minItems", 0)
        case "integer" | "number":
            bounds = [schema.get(k) for k in ("minimum", "maximum")]
            edges = [schema[k] + step for k, step in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)) if k in schema]
            found = [0, *(b for b in bounds if b is not None), *edges]
            return _first_valid(schema, [math.ceil(v) for v in found] if kind == "integer" else found)
        case "boolean":
            return bool(number % 2)
        case "null":
            return None
    return _first_valid(schema, ["x", "x" * schema.get("minLength", 0)])


def _first_valid(schema: dict[str, Any], candidates: list[Any]) -> Any:
    """The first candidate that the schema takes; the first of all if it takes none."""
    validator = validator_for(schema)(schema)
    return next((c for c in candidates if validator.is_valid(c)), candidates[0])
