"""Tables as bytes between processes: Arrow's stream format, which carries a slice without the rest of its table."""

import pyarrow as pa


def to_ipc(batch: pa.RecordBatch | pa.Table) -> bytes:
    """Rows as an Arrow stream, without what a slice does not show."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)
    return bytes(sink.getvalue())


def from_ipc(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_all()
