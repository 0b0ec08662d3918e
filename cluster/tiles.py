"""How many tokens an image is for a Llama 4: the tiles that its image processor cuts, and the tokens of each.

Pure, and exact: a test holds it against the installed transformers. Only images of known size can be counted.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a model's processor cuts images. Lengths are pixels."""

    tile_size: int = 336
    max_tiles: int = 16
    tokens_per_tile: int = 144
    """Patches of a tile after the pixel shuffle: `(tile / patch)**2 * ratio**2`."""
    resize_to_max_canvas: bool = False

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest image: 2,467 for Scout and Maverick."""
        return image_tokens(self.max_tiles, self.tokens_per_tile)


def image_tokens(num_tiles: int, tokens_per_tile: int = 144) -> int:
    """Tokens of an image of so many tiles in the prompt: its patches, a start, an end and an `<|image|>`; and for more than
    one tile a separator after each, and a tile that shows the whole.

    Source: `Llama4Processor._prompt_split_image` of transformers, vLLM's `mllama4.py`. One tile is 147 tokens, 16 are 2,467.
    """
    if num_tiles == 1:
        return tokens_per_tile + 3
    return tokens_per_tile * (num_tiles + 1) + num_tiles + 3


def tile_grid(width: int, height: int, tiling: Tiling) -> tuple[int, int]:
    """Rows and columns of tiles of an image, as `get_best_fit` of transformers' Llama 4 processor chooses them: the canvas
    that shrinks the image least, or enlarges it least (most, with `resize_to_max_canvas`); of several, the smallest.

    Computed in single precision as there, since canvases are compared by equal scales.
    """
    grids = _grids(tiling.max_tiles)
    canvas = (grids * tiling.tile_size).astype(np.float32)
    scales = np.minimum(canvas[:, 0] / np.float32(height), canvas[:, 1] / np.float32(width))
    enlarging = scales[scales >= 1]
    if len(enlarging):
        chosen = enlarging.max() if tiling.resize_to_max_canvas else enlarging.min()
    else:
        chosen = scales.max()
    fitting = grids[scales == chosen]
    rows, columns = fitting[np.argmin(fitting[:, 0] * fitting[:, 1])]
    return int(rows), int(columns)


def image_tokens_of(width: int, height: int, tiling: Tiling) -> int:
    """Tokens of an image of so many pixels."""
    rows, columns = tile_grid(width, height, tiling)
    return image_tokens(rows * columns, tiling.tokens_per_tile)


@lru_cache
def _grids(max_tiles: int) -> Any:
    """All (rows, columns) of at most so many tiles, in the order of transformers' `find_supported_resolutions`: where two
    canvases are equally good and large, the first is taken."""
    by_ratio: dict[float, list[tuple[int, int]]] = {}
    for tiles in range(max_tiles, 0, -1):
        for rows in range(1, tiles + 1):
            if tiles % rows == 0:
                by_ratio.setdefault(rows / (tiles // rows), []).append((rows, tiles // rows))
    return np.array([grid for grids in by_ratio.values() for grid in grids])
