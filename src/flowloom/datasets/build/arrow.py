"""Parquet and Arrow files: the one place that knows pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from flowloom.errors import DataError

AT_ONCE = 64
"""Rows decoded together: some have pictures of megabytes."""
ROWS = pa.schema(
    [
        ("filename", pa.string()),
        ("caption_or_tags", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("is_tag_based", pa.bool_()),
        ("is_url_based", pa.bool_()),
        ("loss_weight", pa.float64()),
    ]
)
"""FLOW's fields as columns."""
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How Hugging Face data sets keep a picture."""


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, or of an Arrow file as Hugging Face's `save_to_disk` writes it.

    Raises:
        DataError: it is neither, or is damaged; the rows before the damage have been read.
    """
    try:
        batches = _parquet(path) if path.suffix.lower() == ".parquet" else _arrow(path)
        for batch in batches:
            for start in range(0, batch.num_rows, AT_ONCE):
                yield from batch.slice(start, AT_ONCE).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"not readable: {error}") from error


def _parquet(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=AT_ONCE)


def _arrow(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file:
        try:
            yield from pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(file)  # older versions wrote the other of Arrow's two forms
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


class ParquetWriter:
    """Rows to one parquet file, in groups of a few dozen MiB; a Hugging Face data set by its metadata."""

    def __init__(self, path: Path, with_images: bool):
        schema = ROWS.append(pa.field("image", PICTURE)) if with_images else ROWS
        features: dict[str, Any] = {
            field.name: {"dtype": _DTYPES[str(field.type)], "_type": "Value"}
            for field in ROWS
            if field.name != "captions"
        }
        features["captions"] = [{"dtype": "string", "_type": "Value"}]
        if with_images:
            features["image"] = {"_type": "Image"}
        about = orjson.dumps({"info": {"features": features}})
        self._schema = schema.with_metadata({b"huggingface": about})
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write `rows` as one group."""
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


_DTYPES = {"string": "string", "int64": "int64", "bool": "bool", "double": "float64"}
