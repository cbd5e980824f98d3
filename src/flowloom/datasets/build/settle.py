"""Items to rows: captions read, pictures measured and written out where they must be, in any thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from flowloom.datasets.build.items import ORDERED, Content, Found, Item, Remark, Unusable, reason_of, shown
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.readers.listing import StoreObject
from flowloom.datasets.build.sizes import LONGEST_HEAD, measure
from flowloom.datasets.build.stores import NamedStores
from flowloom.datasets.build.text import (
    Caption,
    is_missing,
    is_tag_by_line,
    looks_tag_based,
    read_sidecar,
)
from flowloom.datasets.build.wildcards import MAX_VARIANTS, num_variants, unused_marks
from flowloom.errors import DataError, SourceError, StoreDenied, Unavailable

Known: TypeAlias = dict[str, tuple[str, str]]
"""Stamp and value by key, as the state has them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the JSONL, or several equal ones."""

    fields: dict[str, Any]
    repeats: int


@dataclass
class Settled:
    """What became of some items, in their order."""

    rows: list[Row] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    learned: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, stamp, value) for the state."""
    num_read: int = 0


class Settler:
    """Makes rows; safe to use from several threads."""

    def __init__(self, options: BuildOptions, root: Path | None):
        self.options = options
        self.root = root
        self._stores = NamedStores(options.storage)

    def settle(self, items: list[Found], known: Known) -> Settled:
        """Rows of `items`, in their order."""
        done = Settled()
        for item in items:
            if isinstance(item, Unusable):
                done.unusable.append(item)
            elif isinstance(item, Remark):
                done.remarks.append(item)
            else:
                try:
                    done.rows.append(self._row(item, known, done))
                except (Unavailable, StoreDenied):
                    raise  # the store as a whole: no row is to blame
                except (DataError, SourceError) as error:
                    done.unusable.append(Unusable(item.place, str(error)))
                except OSError as error:
                    done.unusable.append(Unusable(item.place, reason_of(error)))
        return done

    def _row(self, item: Item, known: Known, done: Settled) -> Row:
        caption = self._caption(item, known, done)
        texts = caption.texts
        done.remarks += (Remark(item.place, text) for text in _doubts(texts))
        width, height = self._size(item, known, done)
        is_tags = next((stated for stated in self._statements(item, caption) if stated is not None), None)
        if caption.is_ordered:
            is_tags = False
        weights = (item.loss_weight, caption.loss_weight, self.options.loss_weight)
        fields = {
            "filename": item.filename,
            "caption_or_tags": texts[0] if len(texts) == 1 else list(texts),
            "width": width,
            "height": height,
            "is_tag_based": all(map(looks_tag_based, texts)) if is_tags is None else is_tags,
            "is_url_based": item.is_url_based,
            "loss_weight": next(weight for weight in weights if weight is not None),
        }
        return Row(fields, item.repeats if self.options.with_repeats else 1)

    def _statements(self, item: Item, caption: Caption) -> tuple[bool | None, ...]:
        return self.options.is_tag_based, item.is_tag_based, caption.is_tag_based

    def _caption(self, item: Item, known: Known, done: Settled) -> Caption:
        if item.captions is not None:
            return Caption(item.captions)
        if item.sidecar is None:
            if item.rule.fallback is None:
                raise DataError(
                    "it has no caption: write one beside it, or give all such pictures one by --caption"
                )
            return Caption(item.rule.apply([item.rule.fallback]))
        raw = self._read_caption(item.sidecar, known, done)
        if item.rule.lines == "joined" and any(map(is_tag_by_line, raw.texts)):
            text = "its lines look like one tag each and are joined with spaces: write commas between tags"
            done.remarks.append(Remark(item.place, text))
        is_ordered = item.rule.is_ordered(raw.texts)
        if is_ordered:
            done.remarks.append(Remark(item.place, ORDERED))
        if item.rule.has_wildcards and max(map(num_variants, raw.texts)) > MAX_VARIANTS:
            text = f"more than {MAX_VARIANTS} combinations of alternatives: {MAX_VARIANTS} of them are used"
            done.remarks.append(Remark(item.place, text))
        return Caption(item.rule.apply(raw.texts), raw.is_tag_based, raw.loss_weight, is_ordered)

    def _read_caption(self, sidecar: Content, known: Known, done: Settled) -> Caption:
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
        done.learned.append((sidecar.key, stamp, value))
        return caption

    def _size(self, item: Item, known: Known, done: Settled) -> tuple[int, int]:
        if item.picture is None and item.size:
            return item.size
        picture = self._remote(item) if item.picture is None else item.picture
        stamp, value = known.get(picture.key, ("", ""))
        is_known = stamp == picture.stamp
        # Measured before it is written out: what is no picture stays where it is.
        size = tuple(orjson.loads(value)) if is_known else measure(picture)
        if item.is_inside:
            self._write_out(item, picture, known)
        if not is_known:
            done.num_read += 1
            done.learned.append((picture.key, picture.stamp, orjson.dumps(size).decode()))
        return size

    def _remote(self, item: Item) -> Content:
        """The picture at an address of which no size is recorded."""
        store, name = self._stores.of(item.filename)
        # Its length is not known before it is asked for; its address is all that tells it from others.
        return StoreObject(store, item.filename.removesuffix(name), name, LONGEST_HEAD, "by address")

    def _write_out(self, item: Item, picture: Content, known: Known) -> None:
        """Put a picture that is inside an archive below the root; nothing of others is replaced there."""
        if self.root is None:
            raise DataError("there is no folder to write it to")
        target = self.root / item.filename
        stamp, _ = known.get(picture.key, ("", ""))
        is_there = target.is_file()
        if is_there and stamp == picture.stamp:
            return
        data = picture.read()
        if is_there and target.read_bytes() == data:
            return
        if is_there and not stamp:
            raise DataError(
                f"{shown(str(target))} is there already with other content: name another folder by --images"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.tmp")
        partial.write_bytes(data)
        partial.replace(target)


def _doubts(texts: tuple[str, ...]) -> Iterator[str]:
    """What is odd about the captions of an image, which is trained nevertheless."""
    if not any(texts):
        yield "an empty caption"
    for mark in dict.fromkeys(mark for text in texts for mark in unused_marks(text)):
        yield f"trained as text: {mark}. A dataset TOML with that key converts it"
    for text in texts:
        if text and is_missing(text):
            yield f"the caption is {text!r}, which tables write for none"
