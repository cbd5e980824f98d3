"""Kohya's dataset TOML: subsets of folders, or of metadata files, with inherited settings."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from flowloom.datasets.build.items import (
    ORDERED,
    CaptionRule,
    Item,
    OpenedSource,
    ReaderOutput,
    Remark,
    Unusable,
    local_file,
    name_problem,
    shown,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import PairRule
from flowloom.datasets.build.readers.folder import ImageFolder, items_of, list_folder
from flowloom.datasets.build.readers.table import find_listed_image, json_records
from flowloom.datasets.build.text import weight_of
from flowloom.errors import DataError
from flowloom.json_types import is_array, is_object
from flowloom.text_files import read_text

_USED = frozenset(
    [
        "image_dir",
        "num_repeats",
        "class_tokens",
        "caption_extension",
        "caption_extention",
        "caption_separator",
        "keep_tokens",
        "keep_tokens_separator",
        "secondary_separator",
        "metadata_file",
        "is_reg",
        "caption_prefix",
        "caption_suffix",
        "shuffle_caption",
        "enable_wildcard",
        "subsets",
    ]
)
_TRAINING_KEYS = frozenset(
    [
        "resolution",
        "batch_size",
        "enable_bucket",
        "min_bucket_reso",
        "max_bucket_reso",
        "bucket_reso_steps",
        "bucket_no_upscale",
        "validation_split",
        "validation_seed",
        "cache_info",
        "resize_interpolation",
        "caption_dropout_rate",
        "caption_tag_dropout_rate",
        "caption_dropout_every_n_epochs",
    ]
)


@dataclass(frozen=True)
class Subset:
    """One subset of the file, with the settings that it inherits."""

    where: str
    settings: dict[str, Any]

    def text(self, key: str) -> str:
        """A text setting; "" if it is missing."""
        value = self.settings.get(key, "")
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {key} is {value!r:.60}; it must be text.")
        return value

    def folder(self, base: Path) -> Path:
        """Its image_dir; a relative path is relative to the TOML."""
        if not self.text("image_dir"):
            raise DataError(f"{self.where}: image_dir is missing.")
        name = self.text("image_dir")
        if PureWindowsPath(name).drive:
            raise DataError(
                f"{self.where}: image_dir {name} is a Windows path. Write its path on this machine."
            )
        folder = base / name
        return (folder if folder.exists() else base / name.replace("\\", "/")).resolve()

    def suffix(self) -> str:
        """Suffix of its caption files; the dot may be missing, and the key may have its old spelling."""
        suffix = self.text("caption_extension") or self.text("caption_extention") or ".caption"
        return f".{suffix.lstrip('.').lower()}"

    def captions(self) -> tuple[str, ...]:
        """Equal for subsets that give the same captions to the same images."""
        keys = ("image_dir", "metadata_file", "caption_prefix", "caption_suffix")
        return (*map(self.text, keys), self.suffix())

    def repeats(self) -> int:
        """Repeats of each image."""
        value = self.settings.get("num_repeats", 1)
        if type(value) is not int or value < 1:
            raise DataError(
                f"{self.where}: num_repeats is {value!r:.60}; it must be a whole number of at least 1."
            )
        return value

    def keeps_tags(self) -> bool:
        """True if the first tags of each caption are not shuffled."""
        value = self.settings.get("keep_tokens", 0)
        if type(value) is not int or value < 0:
            raise DataError(
                f"{self.where}: keep_tokens is {value!r:.60}; it must be a whole number of at least 0."
            )
        return value > 0


def open_kohya_toml(path: Path, options: BuildOptions) -> OpenedSource:
    """The images of all subsets that the TOML at `path` describes.

    Raises:
        DataError: it is not a dataset TOML.
    """
    try:
        config = tomllib.loads(read_text(path))
    except (OSError, DataError, tomllib.TOMLDecodeError) as error:
        hint = ". Write Windows paths with / or in 'single quotes'" if "\\" in str(error) else ""
        raise DataError(f"{path}: not valid TOML: {error}{hint}") from error
    subsets = list(_subsets(path, config))
    if not subsets:
        raise DataError(f"{path}: it has no [[datasets.subsets]].")
    folders = [subset.folder(path.parent) for subset in subsets]
    root = options.root.resolve() if options.root else Path(os.path.commonpath(folders))
    return OpenedSource("kohya-toml", root, _read(path, subsets, root, options))


def _subsets(path: Path, config: dict[str, Any]) -> Iterator[Subset]:
    general = _tables(path, [config.get("general", {})])[0]
    for i, dataset in enumerate(_tables(path, config.get("datasets", []))):
        for k, subset in enumerate(_tables(path, dataset.get("subsets", []))):
            yield Subset(f"{path} datasets[{i}].subsets[{k}]", general | dataset | subset)


def _tables(path: Path, value: Any) -> list[dict[str, Any]]:
    if not is_array(value) or not all(is_object(part) for part in value):
        raise DataError(f"{path}: general must be a table; datasets and subsets must be lists of tables.")
    return value


def _read(path: Path, subsets: list[Subset], root: Path, options: BuildOptions) -> Iterator[ReaderOutput]:
    seen: set[tuple[str, ...]] = set()
    for subset in subsets:
        yield from _remarks(subset)
        key = subset.captions()
        if key in seen and not subset.settings.get("is_reg"):
            # Several [[datasets]] of one folder are Kohya's way to train several resolutions.
            yield Remark(
                subset.where, "left out: already read; set several sizes in dataloader.base_resolution"
            )
            continue
        if any(key[:2] == other[:2] for other in seen):
            yield Remark(subset.where, "read again with other captions; sd-scripts would not")
        seen.add(key)
        read = _by_metadata if subset.text("metadata_file") else _by_folder
        for item in read(path, subset, root, options):
            if isinstance(item, Item):
                yield from _with_settings(item, subset, options)
            else:
                yield item


def _with_settings(item: Item, subset: Subset, options: BuildOptions) -> Iterator[ReaderOutput]:
    """`item` with the settings of its subset, preceded by a remark if its tags cannot be shuffled."""
    weight = options.reg_weight if subset.settings.get("is_reg") else item.loss_weight
    # A caption that sd-scripts does not shuffle is not shuffled here either, even if it looks like tags.
    shuffled = subset.settings.get("shuffle_caption")
    is_tags = shuffled if isinstance(shuffled, bool) and item.is_tag_based is None else item.is_tag_based
    if shuffled and is_tags and subset.keeps_tags():
        # A shuffle would move the trigger word, too.
        is_tags = False
        yield Remark(item.where, ORDERED)
    yield replace(item, loss_weight=weight, is_tag_based=is_tags)


def _remarks(subset: Subset) -> Iterator[Remark]:
    for key in sorted(subset.settings.keys() - _USED):
        reason = "belongs in the training configuration" if key in _TRAINING_KEYS else "has no counterpart"
        yield Remark(subset.where, f"ignored: {key} {reason}")


def _rule(subset: Subset, options: BuildOptions) -> CaptionRule:
    tokens = subset.text("class_tokens") or options.default_caption
    has_wildcards = bool(subset.settings.get("enable_wildcard"))
    return CaptionRule(
        tokens,
        "each" if has_wildcards else "first",
        subset.text("caption_prefix"),
        subset.text("caption_suffix"),
        has_wildcards,
        subset.text("caption_separator") or ",",
        subset.text("keep_tokens_separator"),
        subset.text("secondary_separator"),
    )


def _by_folder(path: Path, subset: Subset, root: Path, options: BuildOptions) -> Iterator[ReaderOutput]:
    folder = subset.folder(path.parent)
    image_folder = ImageFolder(folder, root, PairRule((subset.suffix(),), is_shared=True))
    files, folders, skipped = list_folder(str(folder), root)
    yield from skipped
    for lower in folders:
        yield Remark(shown(lower), "left out: Kohya does not read folders below image_dir")
    yield from items_of(image_folder, files, _rule(subset, options), subset.repeats())


def _by_metadata(path: Path, subset: Subset, root: Path, options: BuildOptions) -> Iterator[ReaderOutput]:
    folder, file = subset.folder(path.parent), path.parent / subset.text("metadata_file")
    rule = _rule(subset, options)
    for where, name, fields in json_records(file):
        image = find_listed_image(folder, name)
        try:
            caption, is_tags = _caption(fields, rule)
            weight = weight_of(fields.get("loss_weight"))
            if isinstance(image, str):
                raise DataError(image)
            if caption is None and rule.fallback is None:
                raise DataError("it has no caption and no tags")
            if not image.is_relative_to(root):
                raise DataError(f"it is outside {root}")
            filename = image.relative_to(root).as_posix()
            if problem := name_problem(filename):
                raise DataError(problem)
            content = local_file(image)
        except (DataError, OSError) as error:
            yield Unusable(where, str(error))
            continue
        raw = [caption if caption is not None else rule.fallback or ""]
        if rule.is_ordered(raw):
            is_tags = False
            yield Remark(where, ORDERED)
        text = rule.apply(raw)
        yield Item(
            where, filename, content, text, is_tag_based=is_tags, loss_weight=weight, repeats=subset.repeats()
        )


def _caption(fields: dict[str, Any], rule: CaptionRule) -> tuple[str | None, bool | None]:
    """The caption by Kohya's rule: tags are appended to every line of the caption."""
    caption, tags = (fields.get(key) or None for key in ("caption", "tags"))
    if not all(value is None or isinstance(value, str) for value in (caption, tags)):
        raise DataError("its caption and tags must be text")
    if caption is None:
        return tags, True if tags is not None else None
    if not tags:
        return caption, None
    tags = rule.separator.join(tags.splitlines())
    separator = f"{rule.separator} " if rule.separator == "," else rule.separator
    lines = [line.strip() for line in caption.splitlines() if line.strip()]
    return "\n".join(f"{line}{separator}{tags}" for line in lines), None
