"""Convert items to rows: read captions, measure images, and extract images from archives; thread-safe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from flowloom.datasets.build.items import (
    ORDERED,
    Content,
    Item,
    ReaderOutput,
    Remark,
    Unusable,
    reason_of,
    shown,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.readers.listing import StoreObject
from flowloom.datasets.build.sizes import MAX_HEAD_BYTES, measure
from flowloom.datasets.build.stores import NamedStores
from flowloom.datasets.build.text import (
    Caption,
    is_missing,
    is_tag_by_line,
    looks_tag_based,
    read_sidecar,
)
from flowloom.datasets.build.videos import measured_video
from flowloom.datasets.build.wildcards import MAX_VARIANTS, num_variants, unused_marks
from flowloom.errors import DataError, SourceError, StoreDenied, Unavailable
from flowloom.image_suffixes import VIDEO_SUFFIXES

FIRST_FIELDS = ("filename", "caption_or_tags", "width", "height")
StateEntries: TypeAlias = dict[str, tuple[str, str]]
"""(stamp, value) by key, from the build state."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the JSONL, with its repeats."""

    fields: dict[str, Any]
    repeats: int


@dataclass
class MadeRows:
    """The rows made of some items, in order."""

    rows: list[Row] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    state_entries: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, stamp, value) to store in the build state."""
    num_read: int = 0


class RowMaker:
    """Converts items to rows; safe in several threads."""

    def __init__(self, options: BuildOptions, root: Path | None):
        self.options = options
        self.root = root
        self._stores = NamedStores(options.storage)

    def make_rows(self, items: list[ReaderOutput], known: StateEntries) -> MadeRows:
        """The rows of `items`, in order."""
        done = MadeRows()
        for item in items:
            if isinstance(item, Unusable):
                done.unusable.append(item)
            elif isinstance(item, Remark):
                done.remarks.append(item)
            else:
                try:
                    done.rows += self._rows(item, known, done)
                except (Unavailable, StoreDenied):
                    raise  # a problem of the store, not of the row
                except (DataError, SourceError) as error:
                    done.unusable.append(Unusable(item.where, str(error)))
                except OSError as error:
                    done.unusable.append(Unusable(item.where, reason_of(error)))
        return done

    def _rows(self, item: Item, known: StateEntries, done: MadeRows) -> list[Row]:
        caption = self._caption(item, known, done)
        texts = caption.texts
        done.remarks += (Remark(item.where, text) for text in _caption_remarks(texts))
        parts = self._parts(item, known, done)
        is_tags = next((stated for stated in self._statements(item, caption) if stated is not None), None)
        if caption.is_ordered:
            is_tags = False
        weights = (item.loss_weight, caption.loss_weight, self.options.loss_weight)
        fields = {
            "filename": item.filename,
            "caption_or_tags": texts[0] if len(texts) == 1 else list(texts),
            "is_tag_based": all(map(looks_tag_based, texts)) if is_tags is None else is_tags,
            "is_url_based": item.is_url_based,
            "loss_weight": next(weight for weight in weights if weight is not None),
        }
        if item.references:
            fields["references"] = list(item.references)
        repeats = item.repeats if self.options.with_repeats else 1
        return [Row(_ordered(fields | part), repeats) for part in parts]

    def _statements(self, item: Item, caption: Caption) -> tuple[bool | None, ...]:
        return self.options.is_tag_based, item.is_tag_based, caption.is_tag_based

    def _caption(self, item: Item, known: StateEntries, done: MadeRows) -> Caption:
        if item.captions is not None:
            return Caption(item.captions)
        if item.sidecar is None:
            if item.rule.fallback is None:
                raise DataError(
                    "it has no caption: write one beside it, or set one for all such images with --caption"
                )
            return Caption(item.rule.apply([item.rule.fallback]))
        raw = self._read_caption(item.sidecar, known, done)
        if item.rule.lines == "joined" and any(map(is_tag_by_line, raw.texts)):
            text = "its lines look like one tag each, and were joined with spaces: write commas between tags"
            done.remarks.append(Remark(item.where, text))
        is_ordered = item.rule.is_ordered(raw.texts)
        if is_ordered:
            done.remarks.append(Remark(item.where, ORDERED))
        if item.rule.has_wildcards and max(map(num_variants, raw.texts)) > MAX_VARIANTS:
            text = f"more than {MAX_VARIANTS} combinations of alternatives: {MAX_VARIANTS} of them are used"
            done.remarks.append(Remark(item.where, text))
        return Caption(item.rule.apply(raw.texts), raw.is_tag_based, raw.loss_weight, is_ordered)

    def _read_caption(self, sidecar: Content, known: StateEntries, done: MadeRows) -> Caption:
        encoding = self.options.caption_encoding
        stamp = f"{sidecar.stamp} {encoding}"
        if known.get(sidecar.key, ("",))[0] == stamp:
            texts, is_tag_based, weight = orjson.loads(known[sidecar.key][1])
            return Caption(tuple(texts), is_tag_based, weight)
        try:
            caption = read_sidecar(sidecar.key, sidecar.read(), encoding)
        except DataError as error:
            raise DataError(f"{shown(Path(sidecar.key).name)}: {error}") from error
        value = orjson.dumps([caption.texts, caption.is_tag_based, caption.loss_weight]).decode()
        done.state_entries.append((sidecar.key, stamp, value))
        return caption

    def _parts(self, item: Item, known: StateEntries, done: MadeRows) -> list[dict[str, Any]]:
        """The fields of each row of `item` that describe its pixels: one row, or one for each clip."""
        if not item.filename.partition("?")[0].lower().endswith(VIDEO_SUFFIXES):
            width, height = self._size(item, known, done)
            return [{"width": width, "height": height}]
        if item.is_inside:
            raise DataError("a video inside an archive or table: unpack it")
        image = self._remote(item) if item.image is None else item.image
        video, is_read = measured_video(image, known.get(image.key), self.options)
        if is_read:
            done.num_read += 1
            done.state_entries.append((image.key, *video.entry))
        done.remarks += (Remark(item.where, text) for text in video.remarks)
        return video.clips(self.options)

    def _size(self, item: Item, known: StateEntries, done: MadeRows) -> tuple[int, int]:
        if item.image is None and item.size:
            return item.size
        image = self._remote(item) if item.image is None else item.image
        stamp, value = known.get(image.key, ("", ""))
        is_known = stamp == image.stamp
        # Measured before it is extracted, so that only images are.
        size = tuple(orjson.loads(value)) if is_known else measure(image)
        if item.is_inside:
            self._extract(item, image, known)
        if not is_known:
            done.num_read += 1
            done.state_entries.append((image.key, image.stamp, orjson.dumps(size).decode()))
        return size

    def _remote(self, item: Item) -> Content:
        """The image at a URL without a recorded size."""
        store, name = self._stores.of(item.filename)
        # Its length is not known before a request, so the stamp is constant.
        return StoreObject(store, item.filename.removesuffix(name), name, MAX_HEAD_BYTES, "by address")

    def _extract(self, item: Item, image: Content, known: StateEntries) -> None:
        """Extract an image from an archive below the root; files of other origin are not replaced."""
        if self.root is None:
            raise DataError("it has no folder to be written to")
        target = self.root / item.filename
        stamp, _ = known.get(image.key, ("", ""))
        exists = target.is_file()
        if exists and stamp == image.stamp:
            return
        data = image.read()
        if exists and target.read_bytes() == data:
            return
        if exists and not stamp:
            raise DataError(
                f"{shown(str(target))} exists with other content: choose another folder with --images"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.tmp")
        partial.write_bytes(data)
        partial.replace(target)


def _ordered(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with the size after the caption, as people expect it."""
    return {name: fields[name] for name in (*FIRST_FIELDS, *fields)}


def _caption_remarks(texts: tuple[str, ...]) -> Iterator[str]:
    """Remarks on unusual captions of an image, which is trained nevertheless."""
    if not any(texts):
        yield "an empty caption"
    for mark in dict.fromkeys(mark for text in texts for mark in unused_marks(text)):
        yield f"trained as text: {mark}. A dataset TOML with this key converts it"
    for text in texts:
        if text and is_missing(text):
            yield f"the caption is {text!r}, a placeholder that tables write for none"
