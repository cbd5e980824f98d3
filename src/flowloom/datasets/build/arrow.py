"""Parquet and Arrow files: the only module that uses pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet

from flowloom.errors import DataError

pa: Any = pyarrow  # no type information
pq: Any = pyarrow.parquet

ROWS_PER_SLICE = 64
"""Rows decoded together: their images may have megabytes each."""
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
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""The column type of images in Hugging Face datasets."""


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, or of an Arrow file as Hugging Face's `save_to_disk` writes it.

    Raises:
        DataError: it is no such file, or is damaged; the rows before the damage have been read.
    """
    try:
        batches = _parquet(path) if path.suffix.lower() == ".parquet" else _arrow(path)
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS_PER_SLICE):
                yield from batch.slice(start, ROWS_PER_SLICE).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"not readable: {error}") from error


def _parquet(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=ROWS_PER_SLICE)


def _arrow(path: Path) -> Iterator[Any]:
    with pa.memory_map(str(path)) as file:
        try:
            yield from pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            # Older versions wrote Arrow's file format instead of its stream format.
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


class ParquetWriter:
    """Writes rows to one parquet file in groups, with the metadata of a Hugging Face dataset."""

    def __init__(self, path: Path, with_images: bool):
        schema = ROWS.append(pa.field("image", IMAGE)) if with_images else ROWS
        features: dict[str, Any] = {
            field.name: {"dtype": _DTYPES[str(field.type)], "_type": "Value"}
            for field in ROWS
            if field.name != "captions"
        }
        features["captions"] = [{"dtype": "string", "_type": "Value"}]
        if with_images:
            features["image"] = {"_type": "Image"}
        info = orjson.dumps({"info": {"features": features}})
        self._schema = schema.with_metadata({b"huggingface": info})
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write `rows` as one group."""
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


_DTYPES = {"string": "string", "int64": "int64", "bool": "bool", "double": "float64"}
