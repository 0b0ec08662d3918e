import random
from pathlib import Path

import numpy as np
import pytest

import jobs.demo
from cluster.families import from_folder
from cluster.tiles import Tiling, image_tokens, image_tokens_of, tile_grid

DEMO = Path(str(jobs.demo.__file__)).parent / "model"
SCOUT = Tiling()


@pytest.mark.parametrize(("tiles", "tokens"), [(1, 147), (2, 437), (4, 727), (16, 2467)])
def test_image_tokens_of_so_many_tiles_are_vllms(tiles: int, tokens: int) -> None:
    assert image_tokens(tiles) == tokens


@pytest.mark.parametrize(
    ("size", "grid"),
    [((336, 336), (1, 1)), ((100, 100), (1, 1)), ((672, 336), (1, 2)), ((336, 672), (2, 1)), ((4000, 4000), (4, 4))],
)
def test_tile_grid_of_plain_sizes_is_as_expected(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert tile_grid(*size, SCOUT) == grid


def test_image_of_the_demo_is_five_tiles_with_the_whole() -> None:
    tiling = from_folder(DEMO).tiling
    assert tiling == Tiling(tile_size=56, max_tiles=4, tokens_per_tile=4, resize_to_max_canvas=True)
    assert tile_grid(112, 112, tiling) == (2, 2)
    assert image_tokens_of(112, 112, tiling) == 5 * 4 + 4 + 3


TILINGS = [SCOUT, Tiling(resize_to_max_canvas=True), Tiling(56, 4, 4, True), Tiling(56, 4, 4), Tiling(336, 7)]


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_tile_grid_agrees_with_transformers_on_many_sizes(tiling: Tiling) -> None:
    import torch
    from transformers.image_utils import SizeDict
    from transformers.models.llama4 import image_processing_llama4 as theirs

    patch = SizeDict(height=tiling.tile_size, width=tiling.tile_size)
    canvases = torch.tensor(theirs.find_supported_resolutions(tiling.max_tiles, patch))
    draw = random.Random(4)
    edges = [1, 2, tiling.tile_size - 1, tiling.tile_size, tiling.tile_size + 1, 5 * tiling.tile_size]
    sizes = [(w, h) for w in edges for h in edges]
    sizes += [(draw.randint(1, 5000), draw.randint(1, 5000)) for _ in range(400)]
    sizes += [(w * k, h * k) for w, h in ((16, 9), (4, 3), (3, 2), (1, 1), (9, 16)) for k in (20, 112, 120, 256)]
    for width, height in sizes:
        best = theirs.get_best_fit((height, width), canvases, tiling.resize_to_max_canvas) // tiling.tile_size
        assert tile_grid(width, height, tiling) == tuple(best.tolist()), (width, height)


@pytest.mark.parametrize("size", [(112, 112), (60, 200), (500, 30), (1000, 700)])
def test_image_tokens_agree_with_the_demos_own_processor(size: tuple[int, int]) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(str(DEMO))
    made = processor(images=[np.zeros((size[1], size[0], 3), np.uint8)], text="<|image|>", return_tensors="pt")
    tiling = from_folder(DEMO).tiling
    assert tiling is not None
    assert len(made["input_ids"][0]) == image_tokens_of(*size, tiling)
