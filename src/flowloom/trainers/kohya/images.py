"""The images that sd-scripts would train on: found, repeated and batched as it does, without running it."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from flowloom.data.images.headers import read_header
from flowloom.errors import ImageError, Problem
from flowloom.json_types import is_array
from flowloom.trainers.kohya.buckets import Buckets, Size
from flowloom.trainers.kohya.config import Dataset, ImageFolder
from flowloom.trainers.kohya.files import style_of

READ = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Suffixes that sd-scripts reads, in lower or upper case."""
WITH_MORE = (".avif", ".jxl")
"""Suffixes that it reads if its Python has the packages for them."""
OTHERS = (".gif", ".tif", ".tiff", ".heic", ".jp2")
CAPTIONS = (".txt", ".caption")
"""Extensions of the captions that most tools write, and of sd-scripts' default."""
OTHER_EXTENSION = "captions of another extension"
NO_CAPTION, SIDEWAYS = "without a caption", "sideways"
SMALL, ENLARGED, TWICE = "small", "enlarged", "twice"
"""Problems of images and folders that sd-scripts accepts."""


@dataclass
class TrainingImage:
    """An image of a dataset."""

    path: Path
    repeats: int
    is_reg: bool = False
    size: Size | None = None
    """The size in a metadata file."""


@dataclass
class Found:
    """The contents of all datasets."""

    rows: Counter[tuple[int, Size]] = field(default_factory=Counter)
    """Images with repeats, by index of the dataset and bucket."""
    num_images: int = 0
    """The number of images without repeats."""
    repeated: int = 0
    """With repeats, without regularisation images."""
    regular: int = 0
    """Regularisation images, repeated to match the number of others."""
    batches: int = 0
    """Batches in an epoch."""
    bucket_pixels: Counter[Path] = field(default_factory=Counter)
    """Sizes of the images by folder, each once, for the caches next to them."""
    files: Counter[Path] = field(default_factory=Counter)
    """Images by folder, each once per dataset."""
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    """File names by remark."""

    def remark(self, what: str, name: str) -> None:
        """Note the remark `what` about a file or folder."""
        self.remarks.setdefault(what, []).append(name)


class Reader:
    """Reads datasets in order, because held-out images depend on earlier datasets."""

    def __init__(self, seed: int | None, reads: Callable[[str], bool]):
        """`seed` is the run's, None if random; `reads` returns True if sd-scripts reads a suffix here."""
        self.found, self._draw, self._reads = Found(), random.Random(seed), reads

    def read(self, datasets: Sequence[Dataset]) -> Found:
        """Everything in `datasets`."""
        for i, dataset in enumerate(datasets):
            place, images = f"datasets.{i}", list[TrainingImage]()
            for j, subset in self._once(dataset):
                images += self._kept(dataset, subset, f"{place}.subsets.{j}")
            self._put(i, dataset, with_regular(images, self.found), place)
        return self.found

    def _once(self, dataset: Dataset) -> Iterator[tuple[int, ImageFolder]]:
        """The folders, each only once: sd-scripts ignores the second."""
        seen: set[str] = set()
        for j, subset in enumerate(dataset.subsets):
            key = subset.metadata_file or subset.image_dir
            if key in seen:
                self.found.remark(TWICE, key)
            else:
                yield j, subset
            seen.add(key)

    def _kept(self, dataset: Dataset, subset: ImageFolder, place: str) -> list[TrainingImage]:
        """The images of a folder that are trained, after a check of their captions."""
        style = style_of(subset)
        if style == "metadata_file":
            return self._of_metadata(subset, place)
        names = self._names(subset)
        if not names:
            message = f"{subset.image_dir} has no image that sd-scripts reads: {', '.join(READ)}."
            self.found.problems.append(Problem(f"{place}.image_dir", message))
        if style == "conditioning_data_dir":
            self._pair_masks(subset, names, place)
        self._captions(subset, names, place)
        if dataset.validation_split and not subset.is_reg:
            whole = len(names)
            self._draw.shuffle(names)
            names = names[: ceil(whole * (1 - dataset.validation_split))]
            self.found.left_out["held out for validation"] += whole - len(names)
        folder = Path(subset.image_dir).expanduser()
        return [TrainingImage(folder / name, subset.num_repeats, subset.is_reg) for name in names]

    def _names(self, subset: ImageFolder) -> list[str]:
        """The images in a folder, as sd-scripts finds and sorts them."""
        found: list[str] = []
        for name in sorted(os.listdir(Path(subset.image_dir).expanduser())):  # noqa: PTH208 -- any text
            ending = os.path.splitext(name)[1]  # noqa: PTH122 -- any text
            kind, is_plain = ending.lower(), ending in (ending.lower(), ending.upper())
            if name.startswith(".") or kind not in READ + WITH_MORE + OTHERS:
                continue
            if is_plain and (kind in READ or (kind in WITH_MORE and self._reads(kind))):
                found.append(name)
            else:
                self.found.left_out[f"{ending} is not read by this sd-scripts"] += 1
        return found

    def _of_metadata(self, subset: ImageFolder, place: str) -> list[TrainingImage]:
        """The images listed in a file of captions."""
        path, folder = Path(subset.metadata_file or "").expanduser(), Path(subset.image_dir).expanduser()
        try:
            entries = dict(_entries(path))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            message = f"{path}: not what sd-scripts reads: {type(error).__name__}: {error}."
            self.found.problems.append(Problem(f"{place}.metadata_file", message))
            return []
        for key, entry in entries.items():
            if not (entry.get("caption") or entry.get("tags")):
                self.found.remark(NO_CAPTION, key)
        return [
            TrainingImage(folder / key, subset.num_repeats, size=_size(entry.get("image_size")))
            for key, entry in entries.items()
        ]

    def _captions(self, subset: ImageFolder, names: list[str], place: str) -> None:
        """Check every caption: an empty one, or one that is not UTF-8, ends sd-scripts."""
        folder = Path(subset.image_dir).expanduser()
        for name in names:
            stem = os.path.splitext(name)[0]  # noqa: PTH122 -- any text
            parts = stem.split("_")
            # File names of images cut out by a face detector end in four numbers.
            stems = [stem, "_".join(parts[:-4])] if len(parts) >= 5 else [stem]
            paths = (folder / f"{one}{subset.caption_extension}" for one in stems)
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                if other := _caption_of_another_extension(folder, stem):
                    self.found.remark(OTHER_EXTENSION, other)
                elif not subset.class_tokens:
                    self.found.remark(NO_CAPTION, name)
            elif trouble := _unreadable(path):
                message = f"{path.name}: {trouble} sd-scripts ends at it."
                self.found.problems.append(Problem(f"{place}.image_dir", message))

    def _pair_masks(self, subset: ImageFolder, names: list[str], place: str) -> None:
        """Check that every image has a mask and every mask an image, as sd-scripts asserts."""
        folder = Path(subset.conditioning_data_dir or "").expanduser()
        wanted = {os.path.splitext(name)[0] for name in names}  # noqa: PTH122 -- any text
        masks = {path.stem for path in folder.iterdir() if path.suffix.lower() in READ + WITH_MORE}
        for what, stems in (("no mask", wanted - masks), ("no image", masks - wanted)):
            if stems:
                some = ", ".join(sorted(stems)[:3])
                message = f"{what} for {len(stems)} of its names, such as {some}: sd-scripts wants pairs."
                self.found.problems.append(Problem(f"{place}.conditioning_data_dir", message))

    def _put(self, number: int, dataset: Dataset, images: list[TrainingImage], place: str) -> None:
        """Assign the images of a dataset to buckets, and these to batches."""
        buckets, used = Buckets.of(dataset), Counter[Size]()
        for image in images:
            size = image.size or self._size_of(image.path, place)
            placed = buckets.place(*size) if size else None
            if size and placed is None:
                message = f"{image.path.name} has {size[0]} x {size[1]} pixels: too few for a bucket."
                self.found.problems.append(Problem(f"{place}.bucket_reso_steps", message))
            if not size or not placed:
                continue
            used[placed.bucket] += image.repeats
            self.found.bucket_pixels[image.path.parent] += placed.bucket[0] * placed.bucket[1]
            self.found.files[image.path.parent] += 1
            if placed.resized[0] > size[0]:
                self.found.remark(ENLARGED, image.path.name)
            elif placed.bucket[0] * placed.bucket[1] * 2 < buckets.area:
                self.found.remark(SMALL, image.path.name)
        self.found.rows.update({(number, bucket): rows for bucket, rows in used.items()})
        self.found.batches += sum(ceil(rows / dataset.batch_size) for rows in used.values())

    def _size_of(self, path: Path, place: str) -> Size | None:
        """The stored size: sd-scripts ignores EXIF's orientation."""
        try:
            header = read_header(path)
        except ImageError as error:
            self.found.problems.append(Problem(f"{place}.subsets", f"{path}: {error}"))
            return None
        if header.orientation != 1:
            self.found.remark(SIDEWAYS, path.name)
        return header.width, header.height


def with_regular(images: list[TrainingImage], found: Found) -> list[TrainingImage]:
    """The images of a dataset that are used; regularisation images are repeated to match the others.

    sd-scripts takes them in turn until there are enough: the last ones may be left out, or come once less.
    """
    plain = [image for image in images if not image.is_reg]
    regular = [image for image in images if image.is_reg]
    wanted, taken, used = sum(image.repeats for image in plain), 0, list[TrainingImage]()
    for image in regular:
        if taken >= wanted:
            found.left_out["regularisation images beyond the number of the others"] += 1
            continue
        used.append(image)
        taken += image.repeats
    for i, image in enumerate(used):
        image.repeats += max(0, wanted - taken + len(used) - 1 - i) // len(used)
    found.num_images += len(plain) + len(used)
    found.repeated += wanted
    found.regular += sum(image.repeats for image in used)
    return plain + used


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Image names and their entries, from JSON or JSONL."""
    if path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            yield entry["image_path"], entry
        return
    for name, entry in json.loads(path.read_text(encoding="utf-8")).items():
        entry.get("caption")
        yield name, entry


def _size(stored: Any) -> Size | None:
    return (int(stored[0]), int(stored[1])) if is_array(stored) and len(stored) == 2 else None


def _caption_of_another_extension(folder: Path, stem: str) -> str:
    """A caption file of the image with another suffix than caption_extension."""
    names = (f"{stem}{extension}" for extension in CAPTIONS)
    return next((name for name in names if (folder / name).is_file()), "")


def _unreadable(path: Path) -> str:
    """The reason that a caption cannot be read; empty if it can."""
    try:
        return "" if path.read_text(encoding="utf-8") else "is empty."
    except UnicodeDecodeError:
        return "is not UTF-8."
    except OSError as error:
        return f"cannot be read: {error.strerror}."
