"""From how rows ended to the columns that are handed back: texts, parsed answers, failures, digests. In batches."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from pipeline import answers
from pipeline.config import RunConfig
from pipeline.errors import RowError
from pipeline.output import QUARANTINED_FIELDS, answered_fields
from pipeline.request import Completion, Failure, Outcome

ORIGIN = ("request_sha256", "sampling_sha256", "cached_from", "key")

Parsed = tuple[Completion | None, str | None, Any, Failure | None]
"""Completion, text, answer and failure of a row, which has either an answer or a failure."""


def piece_schema(config: RunConfig) -> pa.Schema:
    """Columns of what is handed back for some rows of a question: their `index` in the shard, how they ended, the digests
    of what was asked (null for a row that failed before it could be), the run that asked it for another row, and the
    request's key (null where the answer depends on chance)."""
    failure = [f for f in QUARANTINED_FIELDS if f.name != "attempts"]
    origin = [pa.field(name, pa.string()) for name in ORIGIN]
    answered = answered_fields(answers.answer_type(config.answer))
    return pa.schema([pa.field("index", pa.int32()), *answered, *failure, *origin])


class Pieces:
    """Makes pieces for a job. `texts` detokenises a batch of completions; `mark` is told which row (its index) is being
    parsed, and that it no longer is."""

    def __init__(
        self,
        config: RunConfig,
        texts: Callable[[Sequence[Completion]], list[str]],
        mark: Callable[[int, int, bool], None] = lambda slot, index, is_active: None,
    ) -> None:
        self._schema = piece_schema(config)
        self._parse = answers.parser(config.answer)
        self._answer_type = answers.answer_type(config.answer)
        self._answer_is_json = answers.is_json_text(config.answer)
        self._texts, self._mark = texts, mark

    def make(self, slot: int, ended: Sequence[tuple[int, Outcome]]) -> pa.RecordBatch:
        """The piece for rows of the shard in a slot, by index."""
        outcomes = [outcome for _, outcome in ended]
        parsed = self._parsed(slot, ended)
        columns: dict[str, list[Any]] = {
            "index": [index for index, _ in ended],
            "response": [text for _, text, _, _ in parsed],
            "answer": [answer for _, _, answer, _ in parsed],
            "finish_reason": [c.finish_reason if c else None for c, _, _, _ in parsed],
            "prompt_tokens": [c.prompt_tokens if c else None for c, _, _, _ in parsed],
            "output_tokens": [len(c.token_ids) if c else None for c, _, _, _ in parsed],
            "stage": [str(f.stage) if f else None for _, _, _, f in parsed],
            "error_type": [f.error_type if f else None for _, _, _, f in parsed],
            "message": [f.message if f else None for _, _, _, f in parsed],
            **{name: [getattr(o, name) for o in outcomes] for name in ORIGIN},
        }
        return pa.record_batch([pa.array(columns[f.name], f.type) for f in self._schema], schema=self._schema)

    def _parsed(self, slot: int, ended: Sequence[tuple[int, Outcome]]) -> list[Parsed]:
        answered = [(index, o.result) for index, o in ended if isinstance(o.result, Completion)]
        for index, _ in answered:
            self._mark(slot, index, True)
        texts = dict(zip([i for i, _ in answered], self._texts([c for _, c in answered]), strict=True))
        out: list[Parsed] = []
        for index, outcome in ended:
            if isinstance(outcome.result, Failure):
                out.append((None, None, None, outcome.result))
                continue
            self._mark(slot, index, True)
            try:
                value = self._parse(texts[index], outcome.result.finish_reason)
                out.append((outcome.result, texts[index], self._as_column(value), None))
            except RowError as e:
                out.append((None, None, None, Failure.of(e)))
            self._mark(slot, index, False)
        if answers.fit([value for _, _, value, _ in out], self._answer_type):
            return out
        return [self._checked(row) for row in out]

    def _as_column(self, value: Any) -> Any:
        return json.dumps(value, ensure_ascii=False) if self._answer_is_json else value

    def _checked(self, row: Parsed) -> Parsed:
        """The row as it is if the answer's column can hold it, else as a failure."""
        try:
            answers.to_arrow_value(row[2], self._answer_type)
        except RowError as e:
            return None, None, None, Failure.of(e)
        return row
