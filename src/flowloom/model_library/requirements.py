"""Model files that a configuration needs: which files fit, which do not and why, and what is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowloom.config.model_files import cached_files, missing_model_files
from flowloom.config.run import ADAPTERS, ModelSection, RunConfig
from flowloom.errors import ConfigError, Problem, WeightsError
from flowloom.json_types import is_object
from flowloom.model_library.catalog import offer_for
from flowloom.model_library.offer import Offer
from flowloom.model_library.scan import Folder, find_in, look, walk
from flowloom.model_library.scan import ModelFile as FoundModel
from flowloom.models.adapters.base_model import fits, shares_layers
from flowloom.models.family import DEFAULT, ModelFamily, ModelFile, detect, families, family_for
from flowloom.models.header import read_small_json
from flowloom.models.weight_formats import INSTEAD

_T5_WIDTH = 4096


@dataclass(frozen=True)
class Need:
    """A missing model file of a configuration."""

    path: str
    """The key: model.vae_path."""
    reason: str
    local_paths: list[Path]
    """Files on this machine that fit."""
    offer: Offer


def choices(roots: Sequence[Path], of_families: Sequence[ModelFamily] | None = None) -> dict[str, list[Path]]:
    """Files below `roots` for each key of the model section, the tokenizers' folders included.

    Args:
        of_families: those that the files fit; None: any.
    """
    folders = walk(roots)
    models = find_in(folders)
    # Untrained models come last: a form offers the first one.
    models.sort(key=lambda one: one.is_untrained)
    found = {
        f"model.{key}": _as_folders(one.path for one in models if _fits(architectures, one))
        for key, architectures in _architectures_by_key(of_families or list(families().values())).items()
    }
    configs = [path for path in _named("config.json", folders) if _is_t5s(path)]
    vocabularies = [path for path in _named("tokenizer.json", folders) if _has_t5s_ids(path)]
    pieces = _named("spiece.model", folders)
    found["model.t5_config_path"] = configs
    found["model.t5_tokenizer_path"] = sorted({path.parent for path in (*pieces, *vocabularies)})
    tokenizers = {path.parent: _tokenizer_class(path) for path in _named("tokenizer_config.json", folders)}
    found["model.clip_tokenizer_path"] = [
        path.parent
        for path in _named("merges.txt", folders)
        if tokenizers.get(path.parent, "CLIP").startswith("CLIP")
    ]
    found["model.text_tokenizer_path"] = [
        folder for folder, kind in tokenizers.items() if kind and not kind.startswith(("CLIP", "T5"))
    ]
    return found


def _as_folders(paths: Iterable[Path]) -> list[Path]:
    """`paths` with a diffusers folder in place of its network: the folder names the other files too."""
    found: dict[Path, None] = {}
    for path in paths:
        folder = path.parent.parent
        is_network = path.parent.name == "transformer" and (folder / "model_index.json").is_file()
        found[folder if is_network else path] = None
    return list(found)


def _architectures_by_key(of_families: Sequence[ModelFamily]) -> dict[str, frozenset[str]]:
    """By key, the architectures that fit in any of the families."""
    found: dict[str, frozenset[str]] = {}
    for family in of_families:
        for file in family.files:
            if file.architectures:
                key = file.key
                found[key] = found.get(key, frozenset()) | file.architectures
    networks = (family.files[0].architectures for family in of_families)
    return found | {"path": frozenset().union(*networks)}


def _fits(architectures: frozenset[str], model: FoundModel) -> bool:
    is_plain = model.kind in ("network", "vae", "text-encoder", "checkpoint") and not model.problem
    return is_plain and model.architecture in architectures


def unfit_models(model: Mapping[str, Any]) -> list[Problem]:
    """Problems of files of the wrong kind in a model section; missing files are not checked."""
    family, seen = _family(model), _seen(model)
    files = weight_files(family, model)
    problems = [
        Problem(f"model.{key}", reason + _elsewhere(key, files[key], one))
        for key, one in seen.items()
        if (reason := _unfit(files[key], one))
    ]
    return problems or list(_at_odds(family, seen))


def _elsewhere(key: str, file: ModelFile, found: FoundModel) -> str:
    """A hint for the network of another family in the key of one family's."""
    is_network = file.role == "network" and key != "path"
    return " Name it in model.path instead." if is_network and found.kind == "network" else ""


def _family(model: Mapping[str, Any]) -> ModelFamily:
    """The family of a model section that may hold anything."""
    path, name = model.get("path"), model.get("family")
    if isinstance(name, str) and name in families():
        return families()[name]
    if isinstance(path, str) and path and "\0" not in path:
        return detect(Path(path))
    return families()[DEFAULT]


def weight_files(family: ModelFamily, model: Mapping[str, Any]) -> dict[str, ModelFile]:
    """The weights that `family` needs by the key that names each in `model`; the network comes first."""
    files = {file.key: file for file in family.files if file.architectures}
    network, *others = files
    return {"path" if model.get("path") else network: files[network]} | {key: files[key] for key in others}


def encoder_keys(model: ModelSection) -> list[str]:
    """Keys of the encoders' weights that the network of `model` needs."""
    return [file.key for file in family_for(model).files if file.architectures and file.role != "network"]


def unfit_base(path: Path) -> str | None:
    """The reason why the file at `path` is not the network of any family; None if it is, or is unknown."""
    return _unfit(detect(path).files[0], look(path))


def _seen(model: Mapping[str, Any]) -> dict[str, FoundModel]:
    paths = {key: model.get(key) for key in weight_files(_family(model), model)}
    named = {key: Path(path) for key, path in paths.items() if isinstance(path, str) and path}
    return {key: look(path) for key, path in named.items() if "\0" not in str(path) and path.exists()}


def unfit_for(config: RunConfig) -> list[Problem]:
    """`unfit_models` of the files that `config` needs: a cache may replace an encoder."""
    unneeded = cached_files(config)
    unfit = [one for one in unfit_models(config.model.model_dump()) if one.where not in unneeded]
    return unfit or [*_other_prediction(config.model), *_longer_texts(config)]


def _longer_texts(config: RunConfig) -> Iterator[Problem]:
    """Texts for which the network has no positions."""
    family = family_for(config.model)
    longest = family.defaults.longest_text
    lengths = {"model": config.model.t5_max_length}
    lengths["inference"] = config.inference.t5_max_length if config.inference else None
    extra = enumerate(config.extra_inference_config)
    lengths |= {f"extra_inference_config.{i}": section.t5_max_length for i, section in extra}
    for section, length in lengths.items():
        if longest and length and length > longest:
            message = f"{family.title} reads texts of up to {longest} tokens, not {length}."
            yield Problem(f"{section}.t5_max_length", message)


def _other_prediction(model: ModelSection) -> Iterator[Problem]:
    try:
        predicts_x0 = model.network_path.is_file() and family_for(model).predicts_x0(model.network_path)
    except WeightsError:
        return
    if predicts_x0 and not model.use_x0:
        message = (
            f"{model.network_path.name} predicts the image instead of the velocity (x0): set it to true."
        )
        yield Problem("model.use_x0", message)


def refuse_unfit_models(config: RunConfig, source: Path | str) -> None:
    """Check that every model file of `config`, read from `source`, is of the right kind or unknown.

    Raises:
        ConfigError: with everything that `unfit_for` finds.
    """
    problems = unfit_for(config)
    if problems:
        raise ConfigError(str(source), problems)


def rounded_models(model: ModelSection, *, trains_all: bool = False) -> list[str]:
    """Warnings about weights in 8 bits or fewer, which are rounded.

    Args:
        trains_all: the network's weights are trained, rather than an adapter on top of them.
    """
    return [
        f"model.{key}: {one.path.name} has {one.quantized or 'float8 weights'} ({one.precision}), which are "
        f"rounded far more than bf16{_START if trains_all and _is_trained(key) else ''}. Use the bf16 file "
        "of the same model for better results."
        for key, one in _seen(model.model_dump()).items()
        if (one.quantized and one.precision not in _WIDE) or (one.precision or "").startswith("F8")
        if not one.problem
    ]


_START = ", and this run trains all of its weights from there"
_WIDE = {"F32", "F16", "BF16"}


def _is_trained(key: str) -> bool:
    """True for the keys of networks that are trained."""
    return key in ("path", *(family.files[0].key for family in families().values()))


def untrained_models(config: RunConfig) -> list[str]:
    """Warnings about an untrained base, whose adapter gets no gradient."""
    if config.method_kind not in ADAPTERS:
        return []
    return [
        f"model.{key}: {one.path.name} was never trained: its final layer is all zeros, so a LoRA on it "
        "learns nothing. Choose a trained base model."
        for key, one in _seen(config.model.model_dump()).items()
        if one.is_untrained
    ]


def unreadable(path: Path) -> str | None:
    """The reason why no trainer but ours reads the model at `path`, such as GGUF; None without one."""
    try:
        found = look(path)
        if found.quantized:
            return f"{path.name} has {found.quantized}, which only Flowloom's own trainer reads. {INSTEAD}."
        return None if found.kind == "damaged" else found.problem
    except (OSError, ValueError):  # any text, such as the name of a model on the hub
        return None


def adapter_family(path: Path) -> ModelFamily | None:
    """The family that the adapter at `path` is for; None if it shows no family, or several."""
    adapter = look(path).adapter
    fitting = (one for one in families().values() if adapter and adapter.base == one.adapter_base.name)
    return next(fitting, None)


def unfit_adapter(path: Path, family: ModelFamily | None = None) -> str | None:
    """The reason why the file at `path` is no adapter for `family`; None if it is one, or is unknown.

    Args:
        family: None for the adapter's own, or the default one.
    """
    found, family = look(path), family or adapter_family(path) or families()[DEFAULT]
    if found.problem:
        return found.problem
    if found.kind in ("unknown", "pickle"):
        return None
    if found.adapter is None:
        return f"{path.name} is {found.description}, not a LoRA."
    base = found.adapter.base
    if base is None or found.adapter.base_evidence != "tensors" or fits(base, family):
        return None
    if found.adapter.has_text_encoder and shares_layers(base, family):
        return None  # trained with another family's text encoder; its other layers may fit
    return f"{path.name} is a LoRA for {base}, and does not fit {family.title}."


def _unfit(file: ModelFile, model: FoundModel) -> str | None:
    """The reason why `model` is not a `file`; None if it is, or is unknown."""
    if model.problem:
        return model.problem
    if model.kind == "pipeline":
        return _unfit_pipeline(file, model.path)
    if model.kind in ("unknown", "pickle"):
        return None
    if model.kind == "lora" or not file.architectures & {model.architecture, *model.parts}:
        return f"{model.path.name} is {model.description}: {file.title} goes here."
    return None


def _unfit_pipeline(file: ModelFile, folder: Path) -> str | None:
    part = folder / file.subfolder
    if not part.is_dir():
        return f"{folder} is a diffusers folder without {part.name}: {file.title} goes here."
    unfit = _unfit(file, look(part))
    if unfit or file.role == "network":  # the loader accepts a complete pipeline for the network
        return unfit
    return f"{folder} is a complete diffusers pipeline. Name its part: {part}."


def _at_odds(family: ModelFamily, seen: Mapping[str, FoundModel]) -> Iterator[Problem]:
    network = seen.get("path") or seen.get(family.files[0].key)
    for key, num_layers in (("t5_path", 1), ("text_encoder_path", family.defaults.text_layers)):
        encoder = seen.get(key)
        if not network or not encoder or network.width is None or encoder.width is None:
            continue
        needed = network.width // num_layers
        if needed != encoder.width:
            kind = f"T5 that belongs to it{', XXL' * (needed == _T5_WIDTH)}"
            message = (
                f"{encoder.path.name} has {encoder.width} numbers per token, and {network.path.name} needs "
                f"{needed}. Use the {kind if key == 't5_path' else 'text encoder that belongs to it'}."
            )
            yield Problem(f"model.{key}", message)


def missing(section: ModelSection, roots: Sequence[Path], cached: Collection[str] = ()) -> list[Need]:
    """Missing or wrong model files of a configuration, each with fitting files and a download.

    Args:
        cached: keys of files that a cache may replace, see `cached_files`.
    """
    family = _family(section.model_dump())
    problems = [*missing_model_files(section, cached), *unfit_models(section.model_dump())]
    reasons = {problem.where: problem.message for problem in reversed(problems)}
    if not reasons:
        return []
    found = choices(roots, [family])
    return [
        Need(key, reasons[key], found[key], offer_for(key, family.name)) for key in found if key in reasons
    ]


def _named(name: str, folders: Iterable[Folder]) -> list[Path]:
    return [folder / name for folder, names in folders if name in names]


def _tokenizer_class(settings: Path) -> str:
    return str(read_small_json(settings).get("tokenizer_class") or "")


def _is_t5s(config: Path) -> bool:
    # Among transformers' models, only T5's kind calls the width of a head `d_kv`.
    return {"d_model", "d_kv"} <= read_small_json(config).keys()


def _has_t5s_ids(tokenizer: Path) -> bool:
    added = read_small_json(tokenizer, 2**24).get("added_tokens")
    ids = {token.get("content"): token.get("id") for token in added or () if is_object(token)}
    return ids.get("<pad>") == 0 and ids.get("</s>") == 1
