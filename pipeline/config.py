"""The job file as types: every key, its meaning, unit and default.

Keys are ours where Herd owns the matter and then carry their unit; inside `engine` and `sampling` they are vLLM's own
(checked against the installed vLLM by `pipeline.engine.vllm_names`). Unknown keys are refused. Nothing here touches
storage, Ray or vLLM.
"""

import re
from typing import Annotated, Any, Literal

import jsonschema
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)


class Section(BaseModel):
    """A part of the job file: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _no_credentials(uri: str) -> str:
    if re.match(r"\w+://[^/]*@", uri):
        raise ValueError("a URI must not carry credentials; use the environment or the AWS chain")
    return uri


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StrList = Annotated[list[str], BeforeValidator(_as_list)]


class StorageConfig(Section):
    """How to reach an object store. Credentials never stand here: they come from the environment or the usual AWS
    chain (`AWS_ACCESS_KEY_ID`, profiles, instance roles)."""

    endpoint_url: str | None = None
    """Endpoint of an S3-compatible store, such as `http://localhost:9000`; none: AWS, or `AWS_ENDPOINT_URL`."""
    anonymous: bool = False
    """Send unsigned requests, for public buckets."""
    retry_s: float = Field(300.0, ge=0)
    """Seconds for which a run tries a call again whose fault may pass: throttling, timeouts, resets, expired credentials."""
    timeout_s: float = Field(300.0, gt=0)
    """Seconds for one call in all, after which it counts as failed."""

    @field_validator("endpoint_url")
    @classmethod
    def _bare_endpoint(cls, value: str | None) -> str | None:
        if value and "@" in value:
            raise ValueError("an endpoint must not carry credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return value


class SampleConfig(Section):
    rows: int = Field(ge=1)
    """Rows of the sample; all, where the input has no more."""
    seed: int = 0
    """Another seed chooses other rows."""


class InputConfig(Section):
    uri: StrList
    """Parquet files: a URI, glob or folder, or a list of these; local paths or `s3://`."""
    images: StrList = []
    """Columns that hold images: bytes, a `{bytes, path}` struct, a URI, a data URI, or a list of these."""
    carry: list[str] | None = None
    """Columns copied to the output. Default: all but the image columns (and the messages column)."""
    sampling: str | None = None
    """Column whose struct or JSON object overrides `sampling` for its row."""
    limit: int | None = Field(None, ge=1)
    """Only the first rows of the input, for a look."""
    sample: SampleConfig | None = None
    """Only some rows, spread over all files, for a look."""
    incremental: bool = False
    """Each run takes the files that no earlier run of the job took; `output.uri` is the root of their outputs."""
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _one_cut(self) -> "InputConfig":
        if self.limit is not None and self.sample is not None:
            raise ValueError("give either `limit` or `sample`")
        if self.incremental and (self.limit is not None or self.sample is not None):
            raise ValueError(
                "`incremental` takes files as a whole; for a look at some rows say --set input.incremental=false as well, "
                "and --output with another folder"
            )
        return self

    @field_validator("uri")
    @classmethod
    def _some_uri(cls, value: list[str]) -> list[str]:
        if not value or not all(value):
            raise ValueError("give at least one file, glob or folder")
        for uri in value:
            _no_credentials(uri)
        return value


class PromptConfig(Section):
    system: str | None = None
    """Jinja2 template of the system prompt, over the row's columns."""
    user: str | None = None
    """Jinja2 template of the user's turn; the row's images stand before it."""
    messages: str | None = None
    """Column with a chat in OpenAI's format, instead of `user`: a list of structs, or a JSON string."""

    @model_validator(mode="after")
    def _one_source(self) -> "PromptConfig":
        if (self.user is None) == (self.messages is None):
            raise ValueError("give either `user` (a template) or `messages` (a column), not both and not neither")
        return self


class AnswerConfig(Section):
    """The shape of the answer; with nothing given it is free text."""

    choice: list[str] | None = None
    """Exactly one of these strings."""
    regex: str | None = None
    """A string that matches as a whole."""
    json_schema: dict[str, Any] | None = None
    """A JSON document that is valid under this schema."""

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return {} if value in ("text", None) else value

    @model_validator(mode="after")
    def _sound(self) -> "AnswerConfig":
        given = [k for k in ("choice", "regex", "json_schema") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of choice, regex and json_schema, not {' and '.join(given)}")
        if self.choice is not None and (not self.choice or len(set(self.choice)) != len(self.choice)):
            raise ValueError("choice must list at least one answer, and none twice")
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as e:
                raise ValueError(f"regex does not compile: {e}") from None
        if self.json_schema is not None:
            try:
                jsonschema.validators.validator_for(self.json_schema).check_schema(self.json_schema)
            except jsonschema.SchemaError as e:
                raise ValueError(f"json_schema is not a valid schema: {e.message}") from None
        return self

    @property
    def kind(self) -> Literal["text", "choice", "regex", "json_schema"]:
        if self.choice is not None:
            return "choice"
        if self.regex is not None:
            return "regex"
        return "json_schema" if self.json_schema is not None else "text"


def check_sampling(given: dict[str, Any]) -> None:
    """Raises `ValueError` for sampling parameters that are not the job's or the row's to set."""
    if given.get("n", 1) != 1:
        raise ValueError("Herd gives one response a row; to sample several, repeat the rows with different seeds")
    most = given.get("max_tokens", 1)
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ValueError(f"max_tokens must be a whole number of at least 1, not {most!r}")
    for key in ("structured_outputs", "output_kind", "detokenize"):
        if key in given:
            raise ValueError(f"`{key}` is set by Herd itself; the answer's shape is given by `answer`")


class EchoConfig(Section):
    """What the echo engine does wrong on purpose. The patterns are regular expressions, searched in the prompt."""

    latency_s: float = Field(0.0, ge=0)
    """Seconds from a request's admission to its answer."""
    token_s: float = Field(0.0, ge=0)
    """Seconds that each output token adds to that."""
    die_on: str | None = None
    """Kill the engine's process."""
    hang_on: str | None = None
    """Never answer."""
    fail_on: str | None = None
    """Fail the row."""

    @field_validator("die_on", "hang_on", "fail_on")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as e:
            raise ValueError(f"the pattern does not compile: {e}") from None
        return value


class EngineConfig(BaseModel):
    """The engine: `kind` and `echo` are ours, every other key is vLLM's own engine argument."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    kind: Literal["vllm", "echo"] = "vllm"
    """`vllm`, or `echo`: an engine without a model that answers each prompt with a function of it."""
    echo: EchoConfig = EchoConfig()
    core_process: bool = False
    """Run vLLM's core in a process of its own instead of inside the engine actor."""
    auto: bool = False
    """Choose the settings that are not given, for the GPUs at hand and the rows' lengths. `engine: auto` says no more."""

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return {"auto": True} if value == "auto" else value

    @property
    def vllm_args(self) -> dict[str, Any]:
        """The keys that are vLLM's, as given."""
        return dict(self.model_extra or {})

    @property
    def num_gpus(self) -> int:
        """GPUs that one engine takes: tensor parallel times pipeline parallel size."""
        args = self.vllm_args
        return int(args.get("tensor_parallel_size", 1)) * int(args.get("pipeline_parallel_size", 1))

    @model_validator(mode="after")
    def _sound(self) -> "EngineConfig":
        if self.auto and self.kind != "vllm":
            raise ValueError("`auto` chooses settings of vLLM; the echo engine has none")
        if "model" in self.vllm_args:
            raise ValueError("the model is given by the top-level key `model`, not inside `engine`")
        for key in ("tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "max_model_len"):
            value = self.vllm_args.get(key)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{key} must be a whole number of at least 1, not {value!r}")
        return self


class PoolConfig(Section):
    min: int = Field(1, ge=1)
    """Engines to start with."""
    max: int | None = Field(None, ge=1)
    """Engines to grow to; none: as many as `min`."""
    accelerator: str | None = None
    """Ray accelerator type that engines are pinned to, such as `H100`. None: engines run on the CPU."""
    shards_in_flight: int = Field(4, ge=1)
    """Shards that one engine works on at a time, so that it never drains between two."""
    wait_s: float = Field(900.0, gt=0)
    """Seconds that a run waits for a first engine to have its place, and again when it has lost them all: for nodes that
    others use, or that an autoscaler is to bring. A pool that can never fit is refused at once."""

    @property
    def ceiling(self) -> int:
        return self.max if self.max is not None else self.min

    @model_validator(mode="after")
    def _ordered(self) -> "PoolConfig":
        if self.ceiling < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class ShardConfig(Section):
    max_rows: int = Field(512, ge=1)
    """Rows a shard holds at most."""
    max_bytes: ByteSize = Field(ByteSize(64 * 2**20), ge=1)
    """Bytes a shard holds at most, by the uncompressed sizes in the footers of the columns that are read."""


class ImageConfig(Section):
    """Limits on images, wherever they come from."""

    max_bytes: ByteSize = Field(ByteSize(32 * 2**20), ge=1)
    """Encoded size."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Width times height, read from the header before anything is decoded."""
    timeout_s: float = Field(20.0, gt=0)
    """For one fetch in all, redirects included."""
    max_redirects: int = Field(3, ge=0)
    allow_private_addresses: bool = False
    """Let http(s) images come from loopback, private and link-local addresses."""
    allow_local_files: bool = False
    """Let URIs in the data name files of the machine that reads them."""


class RenderConfig(Section):
    concurrency: int | None = Field(None, ge=1)
    """Threads beside each engine that fetch and decode images and fill templates, over all its rendering processes. None:
    16 where images may have to be fetched, else half the cores and at most 8."""
    processes: int | None = Field(None, ge=1)
    """Processes beside each engine that render and preprocess. None: one for an engine on the CPU; on an accelerator a
    quarter of the engine's share of the node's cores, and at most 4."""
    images: ImageConfig = ImageConfig()


class LimitsConfig(Section):
    max_quarantined_fraction: float = Field(0.01, ge=0, le=1)
    """Quarantined rows over all rows above which a run exits with 3."""
    max_quarantined_rows: int | None = Field(None, ge=0)
    """The same as a number of rows."""
    min_sample_rows: int = Field(1000, ge=1)
    """Rows that a session answers or quarantines before it may end early for either of the two; see `pipeline.budget`."""
    max_shard_attempts: int = Field(3, ge=1)
    """Times a shard is tried when the actor or node that has it is lost, before the run gives it up."""
    max_engine_restarts: int = Field(6, ge=2)
    """Times in a row that an engine may die without a single answer in between, before the run ends."""
    stall_s: float = Field(600.0, gt=0)
    """Seconds without a token or any other sign of progress, with rows in hand, after which an engine's process is
    killed. Must exceed the longest prefill."""
    start_s: float = Field(3600.0, gt=0)
    """Seconds that an engine may take to get ready, weights included."""
    lease_s: float = Field(60.0, gt=0)
    """Seconds without a sign of life after which another session may take a run's output over."""
    drain_s: float = Field(30.0, ge=0)
    """Seconds that a run which is told to stop gives the shards in flight."""


class CacheConfig(Section):
    """Identical requests (same prompt, images by content, sampling, answer shape and model; greedy or with a seed of its
    own) are answered once."""

    in_run: bool = True
    """Within a run, each engine asks identical requests once and gives the answer to all rows that want it."""
    uri: Annotated[str, Field(min_length=1), AfterValidator(_no_credentials)] | None = None
    """Folder of answers that runs share: a local path or `s3://bucket/prefix`. A row whose request is there is not asked."""
    storage: StorageConfig = StorageConfig()


class CostConfig(Section):
    """What a run is expected to take: `herd plan` says it, and a run keeps it beside what it took."""

    gpu_hour_usd: float | None = Field(None, ge=0)
    """US dollars for one GPU and hour. None: a small dated table of list prices, see `cluster.prices`."""
    sample_rows: int = Field(64, ge=0)
    """Rows that `herd run` looks at for its estimate, beside the start of its engines; 0: it makes none."""


class OutputConfig(Section):
    uri: Annotated[str, Field(min_length=1), AfterValidator(_no_credentials)]
    """Folder that the run owns: a local path or `s3://bucket/prefix`."""
    storage: StorageConfig = StorageConfig()

    @property
    def arguments(self) -> str:
        """The folder as the commands that look at runs take it: OUT, and the options that reach it."""
        endpoint = f" --endpoint-url {self.storage.endpoint_url}" if self.storage.endpoint_url else ""
        return self.uri + endpoint + (" --anonymous" if self.storage.anonymous else "")


class EvaluateConfig(Section):
    """Compare answers with a column of the input when the run is done."""

    gold: str
    """Carried column with the right answers; rows where it is null are left out."""
    by: str | None = None
    """Carried column to break the figures down by."""


class RunConfig(Section):
    """A whole job."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    input: InputConfig
    prompt: PromptConfig
    model: Annotated[str, AfterValidator(_no_credentials)] | None = None
    """A profile (see `herd models`), a hub id, or a path (local or `s3://`)."""
    sampling: dict[str, Any] = {}
    """vLLM's sampling parameters. Greedy and at most 512 tokens unless said otherwise."""
    answer: AnswerConfig = AnswerConfig()
    engine: EngineConfig = EngineConfig()
    pool: PoolConfig = PoolConfig()
    shard: ShardConfig = ShardConfig()
    render: RenderConfig = RenderConfig()
    limits: LimitsConfig = LimitsConfig()
    cache: CacheConfig = CacheConfig()
    evaluate: EvaluateConfig | None = None
    cost: CostConfig = CostConfig()
    output: OutputConfig

    @field_validator("sampling")
    @classmethod
    def _sampling(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_sampling(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> "RunConfig":
        if self.engine.kind == "vllm" and not self.model:
            raise ValueError("`model` is missing: give a profile, a hub id or a path, or `engine: {kind: echo}`")
        if self.prompt.messages is not None and self.input.images:
            raise ValueError("`input.images` goes with `prompt.user`; a messages column names its images itself")
        if self.evaluate and self.input.carry is not None:
            for column in filter(None, (self.evaluate.gold, self.evaluate.by)):
                if column not in self.input.carry:
                    raise ValueError(f"evaluate needs column {column!r}, which input.carry leaves out")
        return self

    @property
    def effective_sampling(self) -> dict[str, Any]:
        """`sampling` over Herd's defaults: vLLM's own would sample at temperature 1 and stop after 16 tokens."""
        return {"temperature": 0.0, "max_tokens": 512, **self.sampling}
