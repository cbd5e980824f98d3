"""The files that a configuration names: where they are, and which of them are not there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flowloom.config.data_sections import DatasetSection
from flowloom.config.local_paths import local_problem
from flowloom.config.run import DataloaderSection, ModelSection, RunConfig
from flowloom.errors import Problem

Paths = TypeVar("Paths", ModelSection, DataloaderSection, DatasetSection, RunConfig)

BESIDE_T5 = ("model.t5_config_path", "model.t5_tokenizer_path")
_TOKENIZERS = ("tokenizer.json", "spiece.model")


def check_files(config: RunConfig) -> list[Problem]:
    """Everything that training reads and that is not there; `config` with absolute paths."""
    return missing_files(config.model, config.dataloader, config.datasets, cached_files(config))


def missing_files(
    model: ModelSection,
    dataloader: DataloaderSection,
    datasets: Sequence[DatasetSection] = (),
    cached: Collection[str] = (),
) -> list[Problem]:
    """`check_files` for the sections that name files; `cached` is what `cached_files` says."""
    is_used = dataloader.jsonl_metadata_path or not datasets
    others = (_missing_set(f"datasets.{i}", section, dataloader) for i, section in enumerate(datasets))
    return [
        *missing_model_files(model, cached),
        *(_missing_data(dataloader) if is_used else ()),
        *(problem for problems in others for problem in problems),
    ]


def cached_files(config: RunConfig) -> frozenset[str]:
    """Keys of the model files that training can do without, where the cache on disk has what they would give.

    Previews decode images and encode prompts; captions that are shuffled differently each time are not kept.
    """
    cache, found = config.cache, set[str]()
    if not config.previews and cache.latents == "disk":
        found.add("model.vae_path")
    varies = config.dataloader.shuffle_tags and not cache.caption_variants
    if not config.previews and cache.text == "disk" and not varies:
        found |= {"model.t5_path", *BESIDE_T5}
    return frozenset(found)


def with_reason(problem: Problem, config: RunConfig) -> Problem:
    """`problem` with what to do where previews need a file that training from the cache would not."""
    alone = config.model_copy(update={"inference": None, "extra_inference_config": []})
    if problem.path not in cached_files(alone) - cached_files(config):
        return problem
    cure = "Previews need it, also with a cache: copy it there, or leave out the inference sections."
    return replace(problem, message=f"{problem.message} {cure}")


def missing_model_files(model: ModelSection, cached: Collection[str] = ()) -> Iterator[Problem]:
    """The files of the networks that are not there: what sampling needs, too.

    Args:
        cached: keys that must name a file, which need not be there.
    """
    named = (
        ("model.chroma_path", "Chroma's weights"),
        ("model.vae_path", "the FLUX autoencoder, ae.safetensors"),
        ("model.t5_path", "the T5 encoder's weights"),
        ("model.t5_config_path", "T5's config.json"),
        ("model.t5_tokenizer_path", "the folder with T5's tokenizer"),
    )
    for key, what in named:
        path = getattr(model, key.removeprefix("model."))
        # Where nothing else is named, these were beside a T5 that is gone.
        is_beside = key in cached and key in BESIDE_T5
        if not is_beside and not (path and key in cached):
            yield from _missing(key, path, what)
    folder, key = Path(model.t5_tokenizer_path), "model.t5_tokenizer_path"
    is_there = model.t5_tokenizer_path and folder.is_dir() and key not in cached
    if is_there and not any((folder / name).exists() for name in _TOKENIZERS):
        yield Problem(key, f"{folder} has neither {' nor '.join(_TOKENIZERS)}.")


def _missing_set(place: str, section: DatasetSection, dataloader: DataloaderSection) -> Iterator[Problem]:
    yield from _missing_rows(f"{place}.jsonl_metadata_path", section.jsonl_metadata_path)
    if section.image_folder_path is not None and not dataloader.dummy_image:
        yield from _other_folder(place, section)
        what = "the folder that file names are relative to"
        yield from _missing(f"{place}.image_folder_path", section.image_folder_path, what, in_store=True)
    yield from _missing_masks(place, section)


def _missing_masks(place: str, section: DataloaderSection | DatasetSection) -> Iterator[Problem]:
    if section.mask == "folder":
        yield from _missing(
            f"{place}.mask_folder_path", section.mask_folder_path, "the folder with the masks"
        )


def _missing_rows(place: str, path: str) -> Iterator[Problem]:
    yield from _missing(place, path, "a JSONL file with one sample a line, or a folder of images")


def _other_folder(place: str, section: DataloaderSection | DatasetSection) -> Iterator[Problem]:
    """A folder of images names its files itself."""
    folder, named = section.jsonl_metadata_path, section.image_folder_path
    if is_folder(folder) and named and Path(named) != Path(folder):
        message = f"leave it out: the images are those of {folder}, the folder in jsonl_metadata_path."
        yield Problem(f"{place}.image_folder_path", message)


def _missing_data(dataloader: DataloaderSection) -> Iterator[Problem]:
    images = "dataloader.image_folder_path"
    yield from _missing_rows("dataloader.jsonl_metadata_path", dataloader.jsonl_metadata_path)
    yield from _other_folder("dataloader", dataloader)
    if not dataloader.dummy_image:
        what = "the folder that file names are relative to"
        yield from _missing(images, dataloader.image_folder_path, what, in_store=True)
    yield from _missing_masks("dataloader", dataloader)


def _missing(path: str, value: str, what: str, *, in_store: bool = False) -> Iterator[Problem]:
    if not value:
        yield Problem(path, f"is needed: {what}.")
    elif in_store and _is_address(value):
        return
    elif elsewhere := local_problem(path, value):
        yield from elsewhere
    elif not Path(value).exists():
        yield Problem(path, f"{value} does not exist.")


def resolve_paths(section: Paths, folder: Path) -> Paths:
    """`section` with absolute paths: from the current directory, or from `folder` where only that has it.

    T5's config.json and tokenizer are looked for beside its weights when the configuration names none. A
    folder of images in the place of a JSONL is the folder of its images, too.
    """
    if isinstance(section, RunConfig):
        update: dict[str, object] = {
            name: resolve_paths(getattr(section, name), folder) for name in ("model", "dataloader")
        }
        update["datasets"] = [resolve_paths(one, folder) for one in section.datasets]
        return section.model_copy(update=update)
    paths = {name: value for name, value in section if name.endswith("_path") and value}
    absolute = {name: _absolute(value, folder) for name, value in paths.items()}
    if isinstance(section, ModelSection) and "t5_path" in absolute:
        absolute = _beside_t5(Path(absolute["t5_path"])) | absolute
    rows = absolute.get("jsonl_metadata_path", "")
    if is_folder(rows) and paths.get("image_folder_path", "") in ("", "."):
        absolute["image_folder_path"] = rows
    return section.model_copy(update=absolute)


def _absolute(text: str, folder: Path) -> str:
    if _is_address(text):
        return text
    path = Path(text).expanduser()
    beside = folder / path
    return str((beside if beside.exists() and not path.exists() else path).absolute())


def is_folder(text: str) -> bool:
    """Whether `text` names a folder of this machine."""
    return bool(text) and not _is_address(text) and Path(text).is_dir()


def _is_address(text: str) -> bool:
    """Whether `text` names a store, s3://bucket say, and no file of this machine."""
    return "://" in text


def _beside_t5(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    if (folder / "config.json").exists():
        found["t5_config_path"] = str(folder / "config.json")
    if any((folder / name).exists() for name in _TOKENIZERS):
        found["t5_tokenizer_path"] = str(folder)
    return found
