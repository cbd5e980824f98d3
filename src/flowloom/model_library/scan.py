"""A folder's model files, one entry for each model: a file, a folder of shards, a diffusers pipeline."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from flowloom.errors import WeightsError
from flowloom.json_types import is_object
from flowloom.model_library.adapters import AdapterFacts, read_adapter_facts
from flowloom.model_library.untrained import is_untrained
from flowloom.models.architectures import Kind
from flowloom.models.family import families
from flowloom.models.header import (
    GGUF,
    INDEX,
    PICKLED,
    SAFE,
    Header,
    as_weights,
    is_gguf,
    joined,
    read_header,
    read_shards,
    read_small_json,
)
from flowloom.models.recognize import Found, architectures, recognize, vae_by_scaling
from flowloom.models.weight_formats import why_unreadable

LISTED = (*SAFE, *PICKLED, GGUF)
MAX_FILES = 5_000
"""Folders with more files are skipped."""
MAX_FOLDERS = 20_000
"""Maximum number of folders of a root."""
Folder = tuple[Path, list[str]]
_REMEMBERED = 8192

_VERSION = re.compile(r"(?:^|[-_ .])v[-_]?(\d+(?:[._]\d+)*)(?=$|[-_ .a-zA-Z])", re.IGNORECASE)
# In their order within a name.
_VARIANTS = (
    "Base", "HD", "Flash", "Radiance", "x0", "detail-calibrated", "annealed", "fast", "large",
    "dev", "schnell", "krea", "kontext", "fill", "turbo", "lightning", "inpainting", "refiner", "pruned",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    """One model on the disk."""

    path: Path
    size: int
    """Bytes; of a folder, of all its shards."""
    mtime_ns: int
    kind: Kind
    architecture: str | None = None
    """An architecture; of a LoRA, its base."""
    family: str | None = None
    """Name of the group of its versions."""
    variant: str | None = None
    """Base, HD, Flash ..., from its name."""
    version: str | None = None
    """48 of v48, from its name."""
    precision: str | None = None
    """The most frequent number format: BF16, Q4_K ..."""
    quantized: str | None = None
    """The name of its format if its weights are quantized in a way that only our own trainer reads."""
    num_params: int | None = None
    width: int | None = None
    """See Found."""
    parts: tuple[str, ...] = ()
    """Of a checkpoint or pipeline: the architectures in it."""
    adapter: AdapterFacts | None = None
    title: str | None = None
    """Its title in the file's metadata."""
    problem: str | None = None
    """The reason why it cannot be used."""
    is_untrained: bool = False
    """Of a network: its last layer is all zeros, as before any training. A LoRA on it learns nothing."""

    @property
    def description(self) -> str:
        """Its name in messages."""
        if self.kind == "lora":
            return "a LoRA, which goes on top of a base model"
        if self.architecture:
            return architectures()[self.architecture].description
        return {"pickle": "a pickle, which is never opened", "damaged": "damaged"}.get(self.kind, "unknown")


def look(path: Path) -> ModelFile:
    """The model at `path`: a file, a folder of weights, or an index of shards; damage is its problem.

    Raises:
        OSError: it does not exist.
    """
    files = _files_of(path)
    stats = [file.stat() for file in files]
    if any(not stat.S_ISREG(one.st_mode) and not stat.S_ISDIR(one.st_mode) for one in stats):
        # Opening a pipe would block until another program writes to it.
        return ModelFile(path, 0, 0, "damaged", problem=f"{path} is not a regular file.")
    mark = tuple((str(file), one.st_size, one.st_mtime_ns) for file, one in zip(files, stats, strict=True))
    return _read_model(str(path), mark)


def find(roots: Iterable[Path]) -> list[ModelFile]:
    """Every model below `roots`, in the order of their paths; hidden folders are left out."""
    return find_in(walk(roots))


def walk(roots: Iterable[Path]) -> list[Folder]:
    """The folders below `roots` that may have models in them, with the names of their files."""
    found: dict[Path, list[str]] = {}
    for root in roots:
        for count, (folder, subfolders, names) in enumerate(os.walk(root)):
            if count > MAX_FOLDERS:
                break
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            if len(names) <= MAX_FILES:
                found[Path(folder)] = names
    return sorted(found.items())


def find_in(folders: Iterable[Folder]) -> list[ModelFile]:
    """Every model in `folders`, as `walk` gave them, in the order of their paths."""
    found: dict[Path, ModelFile] = {}
    for folder, names in folders:
        for path in _models_in(folder, names):
            try:
                found[path] = look(path)
            except OSError:
                continue  # deleted in the meantime, or a broken link
    return [found[path] for path in sorted(found)]


def _models_in(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    indexes = sorted(name for name in names if name.endswith(f".safetensors{INDEX}"))
    sharded: set[str] = set()
    for name in indexes:
        sharded |= set(_shards_of(folder / name))
    if "model_index.json" in names or len(indexes) == 1:
        yield folder
    else:
        yield from (folder / name for name in indexes)
    for name in names:
        is_model = name.endswith(LISTED) and not name.startswith(".")
        if is_model and name not in sharded:
            yield folder / name


def _shards_of(index: Path) -> list[str]:
    shards = read_small_json(index, 2**25).get("weight_map")
    return [name for name in shards.values() if isinstance(name, str)] if is_object(shards) else []


def _files_of(path: Path) -> list[Path]:
    """The files that determine the properties of `path`."""
    if not path.is_dir():
        config = path.parent / "config.json"
        return (
            [path, config] if path.name.startswith("diffusion_pytorch_model") and config.is_file() else [path]
        )
    index = path / "model_index.json"
    if index.is_file():
        return [index]
    indexes = sorted(path.glob(f"*.safetensors{INDEX}"), key=lambda index: len(index.name))
    if indexes:
        present = (path / name for name in dict.fromkeys(_shards_of(indexes[0])))
        return [indexes[0], *(file for file in present if file.is_file())]
    return sorted(file for file in path.iterdir() if file.suffix in SAFE and file.is_file()) or [path]


@lru_cache(_REMEMBERED)
def _read_model(name: str, mark: tuple[tuple[str, int, int], ...]) -> ModelFile:
    """Cached by size and time of its files."""
    path, files = Path(name), [Path(file) for file, _, _ in mark]
    weights = [part for part in mark if part[0].endswith(LISTED)] or mark
    plain = ModelFile(
        path, sum(size for _, size, _ in weights), max(time for _, _, time in weights), "unknown"
    )
    variant, version = name_parts(path)
    plain = replace(plain, variant=variant, version=version)
    if path.name.endswith(PICKLED) and not is_gguf(path):
        return replace(plain, kind="pickle", family="Pickles")
    if files[0].name == "model_index.json":
        return _pipeline(plain, files[0])
    try:
        header, is_whole = _header(files)
    except WeightsError as error:
        return replace(plain, kind="damaged", quantized=_gguf(path), problem=str(error))
    described = _described(plain, header)
    if described.kind in ("network", "checkpoint") and len(weights) == 1:
        described = replace(described, is_untrained=is_untrained(Path(weights[0][0]), header))
    return described if is_whole else replace(described, kind="unknown")


def _header(files: Sequence[Path]) -> tuple[Header, bool]:
    first = files[0]
    if first.name.endswith(INDEX):
        return read_shards(first)[0], True
    safe = [file for file in files if file.suffix in LISTED]
    return joined([read_header(file) for file in safe]), bool(safe)


def _described(plain: ModelFile, header: Header) -> ModelFile:
    header, quantized = as_weights(header)
    formats = Counter[str]()
    for place in header.tensors.values():
        formats[place.dtype] += place.numel
    precision = formats.most_common(1)[0][0] if formats else None
    model = replace(
        plain,
        precision=precision,
        quantized=_gguf(plain.path) or quantized,
        num_params=formats.total(),
        title=header.metadata.get("modelspec.title"),
        problem=_unreadable(plain.path, header.tensors),
    )
    adapter = read_adapter_facts(plain.path, header)
    if adapter:
        base = adapter.base if adapter.base in architectures() else None
        return replace(model, kind="lora", adapter=adapter, family="LoRA", architecture=base)
    found = recognize({name: place.shape for name, place in header.tensors.items()})
    return _named(model, found, header.tensors) if found else model


def _gguf(path: Path) -> str | None:
    return "GGUF weights" if path.is_file() and is_gguf(path) else None


def _unreadable(path: Path, names: Iterable[str], kind: str = "") -> str | None:
    why = why_unreadable(names, kind)
    return f"{path.name} {why}" if why else None


def _named(model: ModelFile, found: Sequence[Found], names: Iterable[str]) -> ModelFile:
    architecture = found[0].architecture
    if architecture.startswith("vae"):
        scaling = read_small_json(model.path.parent / "config.json").get("scaling_factor")
        architecture = vae_by_scaling(scaling) or architecture
    kind, family, _ = architectures()[architecture]
    is_checkpoint = kind == "network" and len(found) > 1
    return replace(
        model,
        problem=_unreadable(model.path, names, kind),
        kind="checkpoint" if is_checkpoint else kind,
        architecture=architecture,
        family=family,
        width=found[0].width,
        parts=tuple(part.architecture for part in found) if len(found) > 1 else (),
    )


def _pipeline(plain: ModelFile, index: Path) -> ModelFile:
    """The components of a diffusers folder by its index; each also has a separate entry."""
    content = read_small_json(index)
    folder = index.parent
    parts = tuple(sorted(name for name in content if (folder / name).is_dir()))
    size = sum(file.stat().st_size for part in parts for file in (folder / part).glob("*") if file.is_file())
    title = content.get("_class_name")
    group = next((family.title for family in families().values() if title in family.pipelines), "Pipelines")
    title = str(title) if title else None
    return replace(plain, kind="pipeline", family=group, parts=parts, size=size, title=title)


def name_parts(path: Path) -> tuple[str | None, str | None]:
    """Variant and version in a model's name: ("HD Flash", None), (None, "48") ...

    A component of a diffusers folder is named after the folder.
    """
    name = path.name if path.is_dir() else path.stem
    if path.name.startswith(("diffusion_pytorch_model", "model.", "model-")):
        name = path.parent.parent.name if path.parent.name in _PART_FOLDERS else path.parent.name
    words = [
        word for word in _VARIANTS if re.search(rf"(?:^|[-_ .\d]){word}(?=$|[-_ .\d])", name, re.IGNORECASE)
    ]
    found = _VERSION.search(name)
    return " ".join(words) or None, found[1].replace("_", ".") if found else None


_PART_FOLDERS = {"transformer", "unet", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"}
