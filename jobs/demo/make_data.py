"""Writes the demo's input: the UCI handwritten digits as Parquet files with PNG images, and a few broken rows.

    python -m jobs.demo.make_data [FOLDER]

Source: the 1,797 8x8 digits that scikit-learn ships (UCI "Optical Recognition of Handwritten Digits"). Each is enlarged
to 112 px without smoothing, so that the demo's model sees four tiles and a global one. Rows hold `id` (string), `image`
(struct of `bytes` and `path`, as the `datasets` library writes images), `label` (string) and `split` ("train", "test",
or "broken"). The broken rows are what real buckets hold: a truncated PNG, a text file with a PNG's name, a null.
"""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

SEED = 4
NUM_TEST = 397
SIZE_PX = 112
NUM_FILES = 4
ROWS_PER_GROUP = 113

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.string()),
        ("split", pa.string()),
    ]
)


def png(pixels: np.ndarray) -> bytes:
    """A PNG of an 8x8 array of 0..16, enlarged to `SIZE_PX`."""
    image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((SIZE_PX, SIZE_PX), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def rows() -> list[dict[str, Any]]:
    """All rows in file order; the broken ones stand among the good ones."""
    digits = load_digits()
    held_out = set(np.random.default_rng(SEED).permutation(len(digits.target))[:NUM_TEST].tolist())
    out: list[dict[str, Any]] = [
        {
            "id": f"digit-{i:04d}",
            "image": {"bytes": png(pixels), "path": f"digit-{i:04d}.png"},
            "label": str(target),
            "split": "test" if i in held_out else "train",
        }
        for i, (pixels, target) in enumerate(zip(digits.images, digits.target, strict=True))
    ]

    def broken(name: str, image: Any) -> dict[str, Any]:
        return {"id": name, "image": image, "label": None, "split": "broken"}

    whole = out[7]["image"]["bytes"]
    out.insert(101, broken("broken-truncated", {"bytes": whole[: len(whole) // 2], "path": "truncated.png"}))
    text = b"404 Not Found: the photo that should be here was never uploaded.\n"
    out.insert(702, broken("broken-text", {"bytes": text, "path": "missing.png"}))
    out.insert(1203, broken("broken-null", None))
    out.insert(1704, broken("broken-empty", {"bytes": b"", "path": "empty.png"}))
    return out


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows(), schema=SCHEMA)
    per_file = -(-table.num_rows // NUM_FILES)
    for n in range(NUM_FILES):
        part = table.slice(n * per_file, per_file)
        pq.write_table(part, folder / f"digits-{n:05d}.parquet", row_group_size=ROWS_PER_GROUP, compression="zstd")
    print(f"{table.num_rows} rows in {NUM_FILES} files in {folder}")


if __name__ == "__main__":
    main()
