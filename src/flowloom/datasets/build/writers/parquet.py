"""Write a parquet file with FLOW's fields and the image, for `datasets.load_dataset`."""

from __future__ import annotations

from typing import Any

from flowloom.datasets.build.arrow import ParquetWriter
from flowloom.datasets.build.export import Export
from flowloom.datasets.build.items import reason_of

GROUP_BYTES = 2**26
GROUP_ROWS = 10_000


def write(export: Export) -> None:
    """Write the file, row group by row group."""
    partial = export.output.with_name(f"{export.output.name}.tmp")
    writer = ParquetWriter(partial, export.options.with_images)
    group: list[dict[str, Any]] = []
    num_bytes = 0
    try:
        for fetched in export.fetched():
            row = fetched.row
            fields = {
                "filename": row.filename,
                "caption_or_tags": row.captions[0],
                "captions": list(row.captions) if len(row.captions) > 1 else None,
                "width": row.fields["width"],
                "height": row.fields["height"],
                "is_tag_based": row.is_tag_based,
                "is_url_based": row.is_url_based,
                "loss_weight": row.loss_weight,
            }
            if export.options.with_images:
                try:
                    data = fetched.read()
                except OSError as error:
                    export.refuse(row, reason_of(error))
                    continue
                num_bytes += len(data)
                fields["image"] = {"bytes": data, "path": row.filename}
            group.append(fields)
            if num_bytes > GROUP_BYTES or len(group) == GROUP_ROWS:
                writer.write(group)
                group, num_bytes = [], 0
        if group:
            writer.write(group)
        writer.close()
        partial.replace(export.output)
    finally:
        partial.unlink(missing_ok=True)
    export.report.files.append(export.output)
