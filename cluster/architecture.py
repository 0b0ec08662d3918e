"""What of a model decides its memory: parameters by how parallelism divides them, layers by what they cache, its images.

Pure. Read from a model's `config.json`: its families are listed in `cluster.families`, its quantisation is read by
`cluster.quantisation`. A model that is not understood is said to be so, never guessed at.
"""

from dataclasses import dataclass, fields, replace

from cluster.tiles import Tiling


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many parameters a model has, by part. vLLM divides each part in its own way (see `cluster.fit`)."""

    attention: int
    dense: int
    """Feed-forward layers that every token goes through."""
    embedding: int
    head: int
    """0 where it is the embedding's own matrix."""
    shared: int = 0
    """Experts that every token goes through."""
    routed: int = 0
    replicated: int = 0
    """What every GPU holds whole: routers, DeepSeek's down projections."""
    vision: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, part) for part in PARTS)


PARTS = tuple(f.name for f in fields(Parameters))


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Weights that are kept in fewer bits."""

    name: str
    bits: float
    """Bits a parameter, with its share of the scales."""
    parts: frozenset[str]
    """Parts of `Parameters` that are quantised."""


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower of Llama 4. Lengths in pixels."""

    layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    image_size: int
    patch_size: int

    @property
    def patches_per_tile(self) -> int:
        """With the class token: 577 for Scout and Maverick."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder as the planner sees it. Tokens and sizes are counts; nothing here is per GPU."""

    family: str
    """`model_type` of its config."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    """Of a dense layer; 0 where every layer is a mixture of experts."""
    vocab_size: int
    max_context: int
    parameters: Parameters
    num_local_layers: int = 0
    """Layers that look back over `local_tokens` only; the others look back over everything."""
    local_tokens: int = 0
    """Attention chunk of Llama 4, or sliding window."""
    is_chunked: bool = False
    """Whether the local layers go by chunks (Llama 4) rather than by a sliding window."""
    latent_kv_values: int = 0
    """Values a token and layer that DeepSeek's latent attention caches, on every GPU; 0 for key and value heads."""
    num_moe_layers: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    expert_ffn_size: int = 0
    dtype_bytes: int = 2
    quantisation: Quantisation | None = None
    vision: Vision | None = None
    tiling: Tiling | None = None
    """How its processor cuts images; None for a model without images, or with a processor that is not Llama 4's."""
    checkpoint_bytes: int | None = None
    """What the weight files hold, where they were at hand; None goes by arithmetic."""

    @property
    def num_global_layers(self) -> int:
        return self.num_layers - self.num_local_layers

    def part_bytes(self, part: str) -> float:
        """Bytes of a part of the weights. Where the files' size is known, all parts are stretched to it."""
        stretch = self.checkpoint_bytes / self._computed_bytes if self.checkpoint_bytes else 1.0
        return self._part_bytes(part) * stretch

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, once."""
        return self.checkpoint_bytes or round(self._computed_bytes)

    @property
    def _computed_bytes(self) -> float:
        return sum(map(self._part_bytes, PARTS))

    def _part_bytes(self, part: str) -> float:
        count: int = getattr(self.parameters, part)
        is_quantised = self.quantisation is not None and part in self.quantisation.parts
        return count * (self.quantisation.bits / 8 if is_quantised and self.quantisation else self.dtype_bytes)

    def quantised(self, quantisation: Quantisation) -> "Architecture":
        """The same model in fewer bits."""
        return replace(self, quantisation=quantisation)
