"""Kills the process that imports it at named points of a run, without a hook in the product.

On `PYTHONPATH` of a run's processes, and asleep unless `HERD_CHAOS` names a folder with `faults.json`, a list of faults:

    {"id": "f01", "moment": "before" | "during" | "after", "object": "data", "shard": 3, "act": "kill" | "wait"}

`object` is a folder of the output (`data`, `quarantine`, `commits`) with its shard, `claim` (what stands for a record
while a shard is contested) or `read` with its shard, or the name of a file (`run.json`, `plan.parquet`, `_SUCCESS`,
`_lease.json`) without one. `during` is when the bytes are on their way:
the partial file written and not yet named, or the parts of an upload sent and not yet put together. Each fault happens
once, whichever process comes first: it claims `fired/ID`, adds a line to `injected.jsonl`, and dies or, for `wait`,
sleeps until `released` appears in the folder.
"""

import importlib.abc
import importlib.util
import json
import os
import re
import signal
import sys
import threading
import time

FOLDER = os.environ.get("HERD_CHAOS", "")
PART = re.compile(r"/(data|quarantine|commits)/(?:part-)?(\d+)\.(?:parquet|json)$")
in_hand = threading.local()
uploading = {}


def point_of(uri, data):
    found = PART.search(uri)
    if not found:
        return uri.rsplit("/", 1)[-1], None
    is_claim = found[1] == "commits" and b'"claim"' in data[:64]
    return "claim" if is_claim else found[1], int(found[2])


def planned(moment, point):
    try:
        with open(os.path.join(FOLDER, "faults.json")) as f:
            faults = json.load(f)
    except (OSError, ValueError):
        return None
    for fault in faults:
        is_fired = os.path.exists(os.path.join(FOLDER, "fired", fault["id"]))
        if not is_fired and (fault["moment"], fault["object"], fault["shard"]) == (moment, *point):
            return fault
    return None


def strike(fault):
    try:
        os.close(os.open(os.path.join(FOLDER, "fired", fault["id"]), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    line = json.dumps({**fault, "pid": os.getpid()}) + "\n"
    out = os.open(os.path.join(FOLDER, "injected.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(out, line.encode())
    os.close(out)
    if fault["act"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while not os.path.exists(os.path.join(FOLDER, "released")):
        time.sleep(0.05)


def at(moment, point):
    fault = planned(moment, point)
    if fault is not None:
        strike(fault)


def around(put):
    """A put with its three moments. A put inside a put (a conditional one may end in a plain one) has none of its own."""

    def wrapped(store, uri, data, *args, **kwargs):
        if getattr(in_hand, "is_putting", False):
            return put(store, uri, data, *args, **kwargs)
        point = point_of(uri, data)
        in_hand.is_putting = True
        try:
            at("before", point)
            in_hand.fault = planned("during", point)
            if in_hand.fault and not store.is_local:
                sys.modules["pipeline.storage"].PART_BYTES = max(1, len(data) // 2)
                uploading[store.path(uri)] = in_hand.fault
            done = put(store, uri, data, *args, **kwargs)
            at("after", point)
            return done
        finally:
            in_hand.is_putting, in_hand.fault = False, None

    return wrapped


def spoil_storage(module):
    module.Store.put, module.Store.put_if = around(module.Store.put), around(module.Store.put_if)
    for name in ("link", "replace"):
        setattr(os, name, mid_naming(getattr(os, name)))
    import s3fs

    call = s3fs.S3FileSystem._call_s3

    async def mid_upload(self, method, *args, **kwargs):
        fault = uploading.get(f"{kwargs.get('Bucket')}/{kwargs.get('Key')}")
        if fault and method == "complete_multipart_upload":
            strike(fault)
        return await call(self, method, *args, **kwargs)

    s3fs.S3FileSystem._call_s3 = mid_upload


def mid_naming(act):
    def wrapped(*args, **kwargs):
        if getattr(in_hand, "fault", None):
            strike(in_hand.fault)
        return act(*args, **kwargs)

    return wrapped


def spoil_source(module):
    read = module.read_shard

    def wrapped(shard, *args, **kwargs):
        at("before", ("read", shard.shard))
        table = read(shard, *args, **kwargs)
        at("after", ("read", shard.shard))
        return table

    module.read_shard = wrapped


class Spoiler(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Has the two modules changed as soon as they are imported."""

    def __init__(self):
        self.act = {"pipeline.storage": spoil_storage, "pipeline.source": spoil_source}
        self._loaders = {}

    def find_spec(self, name, path, target=None):
        if name not in self.act or name in self._loaders:
            return None
        self._loaders[name] = None
        spec = importlib.util.find_spec(name)
        self._loaders[name] = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec):
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module):
        self._loaders[module.__name__].exec_module(module)
        self.act[module.__name__](module)


if FOLDER:
    sys.meta_path.insert(0, Spoiler())
