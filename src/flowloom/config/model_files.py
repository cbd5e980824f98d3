"""Files named by a configuration: absolute paths, and missing files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flowloom.config.data_sections import DatasetSection
from flowloom.config.device_sections import ParallelSection
from flowloom.config.local_paths import local_problem
from flowloom.config.run import DataloaderSection, InferenceSection, ModelSection, RunConfig
from flowloom.errors import Problem
from flowloom.models.family import DEFAULT, family_for
from flowloom.storage.local_copy import is_url

Paths = TypeVar("Paths", ModelSection, DataloaderSection, DatasetSection, ParallelSection, RunConfig)

BESIDE_T5 = ("model.t5_config_path", "model.t5_tokenizer_path")
_TOKENIZERS = ("tokenizer.json", "spiece.model")


def check_files(config: RunConfig) -> list[Problem]:
    """Missing files of a training run; `config` has absolute paths."""
    settings, key = config.parallel.deepspeed_config_path, "parallel.deepspeed_config_path"
    return [
        *missing_files(config.model, config.dataloader, config.datasets, cached_files(config)),
        *(_missing(key, settings, "DeepSpeed's settings") if settings else ()),
        *_missing_references(config),
        *_keys_of_others(config),
    ]


def _keys_of_others(config: RunConfig) -> Iterator[Problem]:
    """Settings that only other families have."""
    family = family_for(config.model)
    if config.objective.mask_mode == "flow_union" and family.name != DEFAULT:
        message = f"flow_union is FLOW's own mask, which {family.title} has no use for: set it to per_sample."
        yield Problem("objective.mask_mode", message)
    if config.model.use_x0 and not family.defaults.has_x0_networks:
        message = f"{family.title} predicts the velocity, not the image: set it to false."
        yield Problem("model.use_x0", message)


def _missing_references(config: RunConfig) -> Iterator[Problem]:
    """Reference images of previews that are missing, or that the model does not read."""
    places = {f"extra_inference_config.{i}": each for i, each in enumerate(config.extra_inference_config)}
    for place, section in ({"inference": config.inference} | places).items():
        key, names = f"{place}.reference_paths", section.reference_paths if section else []
        family = family_for(config.model)
        if names and not family.defaults.reference_size:
            yield Problem(
                key, f"{family.title} does not edit images: remove it, or choose a model that does."
            )
        for i, name in enumerate(names):
            yield from _missing(f"{key}.{i}", name, "a reference image")


def missing_files(
    model: ModelSection,
    dataloader: DataloaderSection,
    datasets: Sequence[DatasetSection] = (),
    cached: Collection[str] = (),
) -> list[Problem]:
    """`check_files` for the sections that name files; `cached` comes from `cached_files`."""
    is_used = dataloader.jsonl_metadata_path or not datasets
    others = (_missing_set(f"datasets.{i}", section, dataloader) for i, section in enumerate(datasets))
    return [
        *missing_model_files(model, cached),
        *(_missing_data(dataloader) if is_used else ()),
        *(problem for problems in others for problem in problems),
    ]


def cached_files(config: RunConfig) -> frozenset[str]:
    """Keys of model files that training does not need because the disk cache has their results.

    Previews decode images and encode prompts; captions with a new variant each time are not cached.
    """
    cache, roles = config.cache, set[str]()
    if not config.previews and cache.latents == "disk":
        roles.add("latents")
    varies = config.dataloader.shuffle_tags and not cache.caption_variants
    if not config.previews and cache.text == "disk" and not varies:
        roles.add("text")
    files = family_for(config.model).files
    return frozenset(f"model.{file.key}" for file in files if file.role in roles)


def with_reason(problem: Problem, config: RunConfig) -> Problem:
    """Add a hint to `problem` if only previews need the file."""
    alone = config.model_copy(update={"inference": None, "extra_inference_config": []})
    if problem.where not in cached_files(alone) - cached_files(config):
        return problem
    hint = "Previews need it, even with a cache: copy it there, or remove the inference sections."
    return replace(problem, hint=hint)


def missing_model_files(model: ModelSection, cached: Collection[str] = ()) -> Iterator[Problem]:
    """Missing model files; sampling needs them too.

    Args:
        cached: keys that must be set, but whose file may be missing.
    """
    for file in family_for(model).files:
        name = model.network_key if file.role == "network" else file.key
        key, path = f"model.{name}", getattr(model, name)
        # Not set: they were next to the T5 weights, which are gone.
        is_beside = key in cached and key in BESIDE_T5
        is_beside |= not path and key in BESIDE_T5 and is_url(model.t5_path)
        if not is_beside and not (path and key in cached) and not is_url(path):
            yield from _missing(key, path, file.title)
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
    """A folder of images needs no other folder for its file names."""
    folder, named = section.jsonl_metadata_path, section.image_folder_path
    if is_folder(folder) and named and Path(named) != Path(folder):
        message = f"remove it: the images are read from {folder}, the folder in jsonl_metadata_path."
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
        yield Problem(path, f"is needed: {what}.", "missing")
    elif in_store and _is_address(value):
        return
    elif elsewhere := local_problem(path, value):
        yield from elsewhere
    elif not Path(value).exists():
        yield Problem(path, f"{value} does not exist.", "not-found")


def resolve_paths(section: Paths, folder: Path) -> Paths:
    """`section` with absolute paths, relative to the current directory or, if only that exists, to `folder`.

    Files that are not set default to the diffusers folder in `model.path`; T5's config.json and a text
    encoder's tokenizer to the folder of its weights. If a folder of images is given instead of a JSONL, it is
    also the image folder.
    """
    if isinstance(section, RunConfig):
        update: dict[str, object] = {
            name: resolve_paths(getattr(section, name), folder)
            for name in ("model", "dataloader", "parallel")
        }
        update["datasets"] = [resolve_paths(dataset, folder) for dataset in section.datasets]
        update["inference"] = section.inference and _with_references(section.inference, folder)
        update["extra_inference_config"] = [
            _with_references(each, folder) for each in section.extra_inference_config
        ]
        return section.model_copy(update=update)
    paths = {name: value for name, value in section if name.endswith("path") and value}
    absolute = {name: _absolute(value, folder) for name, value in paths.items()}
    if isinstance(section, ModelSection) and absolute.get("path"):
        absolute = _in_pipeline(section.model_copy(update=absolute)) | absolute
    if isinstance(section, ModelSection) and "t5_path" in absolute:
        absolute = _beside_t5(Path(absolute["t5_path"])) | absolute
    if isinstance(section, ModelSection) and "text_encoder_path" in absolute:
        absolute = _beside_encoder(Path(absolute["text_encoder_path"])) | absolute
    rows = absolute.get("jsonl_metadata_path", "")
    if is_folder(rows) and paths.get("image_folder_path", "") in ("", "."):
        absolute["image_folder_path"] = rows
    return section.model_copy(update=absolute)


def _with_references(section: InferenceSection, folder: Path) -> InferenceSection:
    names = [_absolute(name, folder) for name in section.reference_paths]
    return section.model_copy(update={"reference_paths": names}) if names else section


def _absolute(text: str, folder: Path) -> str:
    if _is_address(text):
        return text
    path = Path(text).expanduser()
    beside = folder / path
    return str((beside if beside.exists() and not path.exists() else path).absolute())


def is_folder(text: str) -> bool:
    """True if `text` is a folder on this machine."""
    return bool(text) and not _is_address(text) and Path(text).is_dir()


def _is_address(text: str) -> bool:
    """True if `text` is in an object store, such as s3://bucket."""
    return "://" in text


def _in_pipeline(model: ModelSection) -> dict[str, str]:
    """The encoders' files in a diffusers folder, by key."""
    folder = Path(model.path)
    if not (folder / "model_index.json").is_file():
        return {}
    files = (file for file in family_for(model).files if file.role != "network")
    found = {file.key: folder / file.subfolder for file in files}
    if "t5_config_path" in found:
        found["t5_config_path"] /= "config.json"
    return {key: str(path) for key, path in found.items() if path.exists()}


def _beside_encoder(path: Path) -> dict[str, str]:
    folder = path if path.is_dir() else path.parent
    return {"text_tokenizer_path": str(folder)} if (folder / "tokenizer.json").exists() else {}


def _beside_t5(folder: Path) -> dict[str, str]:
    paths: dict[str, str] = {}
    if (folder / "config.json").exists():
        paths["t5_config_path"] = str(folder / "config.json")
    if any((folder / name).exists() for name in _TOKENIZERS):
        paths["t5_tokenizer_path"] = str(folder)
    return paths
