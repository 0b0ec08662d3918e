"""Renders rows: from the columns of one row to the request that is asked. No engine, no Ray."""

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from pipeline.config import RunConfig, check_sampling
from pipeline.errors import RowError, Stage
from pipeline.render.fetch import Fetcher
from pipeline.render.images import load_cell
from pipeline.render.messages import read_messages
from pipeline.render.template import Template
from pipeline.request import Message, Request, RequestImage, Sampling


class Renderer:
    """Renders one row at a time; safe to use from many threads."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._limits = config.render.images
        self._default_sampling = Sampling(config.effective_sampling)
        self._fetcher = Fetcher(self._limits, config.input.storage)
        self.image_s = 0.0
        """Seconds spent in fetching and decoding images, summed over threads."""
        self._counting = threading.Lock()
        prompt = config.prompt
        self._system = Template(prompt.system, "prompt.system") if prompt.system is not None else None
        self._user = Template(prompt.user, "prompt.user") if prompt.user is not None else None

    def render(self, row: Mapping[str, Any]) -> Request:
        """The request of a row.

        Raises:
            RowError: with the stage and type of what is wrong with the row.
        """
        sampling = self._sampling_of(row)
        turns: list[Message] = []
        if self._system is not None:
            turns.append(Message("system", (self._system.render(row),)))
        if self._user is None:
            cell = row[str(self._config.prompt.messages)]
            turns.extend(read_messages(cell, lambda c: self._load(c, str(self._config.prompt.messages))))
        else:
            images = [image for column in self._config.input.images for image in self._load(row[column], column)]
            text = self._user.render(row)
            if not text.strip() and not images:
                raise RowError(Stage.RENDER, "empty_prompt", "the prompt is empty")
            turns.append(Message("user", (*images, text)))
        return Request(tuple(turns), sampling)

    def _load(self, cell: Any, column: str) -> list[RequestImage]:
        began = time.perf_counter()
        try:
            return load_cell(cell, column, self._limits, self._fetcher.fetch)
        finally:
            with self._counting:
                self.image_s += time.perf_counter() - began

    def _sampling_of(self, row: Mapping[str, Any]) -> Sampling:
        column = self._config.input.sampling
        if column is None or row[column] is None:
            return self._default_sampling
        given = row[column]
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except (ValueError, RecursionError) as e:
                raise RowError(Stage.RENDER, "bad_sampling", f"{column} is not JSON: {e}") from None
        if not isinstance(given, dict):
            raise RowError(Stage.RENDER, "bad_sampling", f"{column} is not an object of sampling parameters")
        given = {k: v for k, v in given.items() if v is not None}
        try:
            check_sampling(given)
        except ValueError as e:
            raise RowError(Stage.RENDER, "bad_sampling", f"{column}: {e}") from None
        return Sampling({**self._default_sampling.values, **given})
