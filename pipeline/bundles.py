"""Which shards travel together: a bundle is read by one task, and answered by one engine, shard after shard. Pure.

Ray Data's own work is by the block, so a large plan travels in large bundles. Towards the end they shrink to single
shards (guided self-scheduling), so that no engine is left with many while others have none. Shards that are much heavier
than the others go first: whatever begins last decides when a run ends.
"""

import numpy as np
import pyarrow as pa

MAX_SHARDS = 64
MAX_ROWS = 32_768
MAX_BYTES = 64 * 2**20
"""A bundle is one object in Ray's store, and some of them wait there for each engine."""
HEAVY = 2.0
"""Times the mean bytes of a shard, beyond which a shard goes first."""


def in_order(pending: pa.Table) -> pa.Table:
    """Pending shards (`plan.SCHEMA`) as they are dispatched: the heavy ones first, heaviest before all, then plan order."""
    num_bytes = pending["num_bytes"].to_numpy()
    is_heavy = num_bytes > HEAVY * num_bytes.mean()
    heavy = np.flatnonzero(is_heavy)
    heavy = heavy[np.argsort(-num_bytes[heavy], kind="stable")]
    return pending.take(np.concatenate([heavy, np.flatnonzero(~is_heavy)]))


def bundles(ordered: pa.Table, lanes: int) -> list[pa.Table]:
    """Cuts shards in their order into bundles of `plan.SCHEMA`, for `lanes` bundles at work at a time in the whole pool.

    Each takes at most its share of half of what is left, `MAX_SHARDS` shards, `MAX_ROWS` rows and `MAX_BYTES` bytes, and
    at least one shard.
    """
    rows = np.concatenate([[0], np.cumsum(ordered["num_rows"].to_numpy())])
    num_bytes = np.concatenate([[0], np.cumsum(ordered["num_bytes"].to_numpy())])
    out, first, count = [], 0, ordered.num_rows
    while first < count:
        share = min(MAX_SHARDS, (count - first) // (2 * lanes))
        last_by_rows = int(np.searchsorted(rows, rows[first] + MAX_ROWS, side="right")) - 1
        last_by_bytes = int(np.searchsorted(num_bytes, num_bytes[first] + MAX_BYTES, side="right")) - 1
        end = max(first + 1, min(first + share, last_by_rows, last_by_bytes))
        out.append(ordered.slice(first, end - first))
        first = end
    return out


def tail(ordered: pa.Table, lanes: int) -> frozenset[int]:
    """The shards that are at work when nothing is left to begin: the last `lanes` of the order."""
    return frozenset(ordered["shard"].slice(max(0, ordered.num_rows - lanes)).to_pylist())
