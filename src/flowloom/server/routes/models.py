"""Model files: the library, files that a configuration is missing, and downloads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Query, status
from pydantic import BaseModel, Field, ValidationError

from flowloom.config.model_files import cached_files, resolve_paths
from flowloom.config.run import ModelSection, RunConfig
from flowloom.errors import Problem
from flowloom.model_library.adapters import AdapterFacts
from flowloom.model_library.catalog import GROUPS, OFFERS
from flowloom.model_library.hashes import Mark, known_hashes, mark_of
from flowloom.model_library.offer import Offer
from flowloom.model_library.requirements import encoder_keys, missing
from flowloom.model_library.scan import LISTED, SAFE, ModelFile, find, look
from flowloom.models.architectures import Kind
from flowloom.models.header import read_header
from flowloom.server.deps import Studio, StudioDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import (
    InUse,
    Invalid,
    NeededToResume,
    NoSuchFile,
    NoSuchRoot,
    OutsideRoots,
    problems,
)
from flowloom.server.routes.training import ConfigRequest
from flowloom.server.runs.references import require_unreferenced, runs_referencing
from flowloom.server.runs.view import RESUMABLE

router = Router(tags=["models"], responses=problems(NoSuchRoot))
_NO_MODELS = {"runs", "data", "cache"}
"""Roots that are listed only on request."""
MAX_TENSORS = 5000


class AdapterView(BaseModel):
    """Facts from the header of a LoRA."""

    kind: str = Field(examples=["lora"])
    naming: str = Field(description="Naming scheme: kohya, comfy, diffusers or peft.", examples=["comfy"])
    rank: int | None
    max_rank: int | None
    alpha: float | None = Field(description="Null: not stated, and equal to the rank.")
    base: str | None = Field(description="The model it is for.", examples=["chroma"])
    base_evidence: str | None = Field(description="Evidence for `base`: tensors, metadata or name.")
    num_layers: int
    has_text_encoder: bool


class ModelView(BaseModel):
    """A model on the disk: a file, or a folder of parts."""

    path: str
    root: str = Field(examples=["models"])
    name: str
    size: int = Field(description="In bytes.")
    time: float
    kind: Kind
    architecture: str | None = Field(examples=["chroma"])
    description: str = Field(examples=["LoRA of Chroma"])
    family: str | None = Field(description="Name that groups its versions.", examples=["Chroma"])
    variant: str | None = Field(description="From its name.", examples=["HD"])
    version: str | None = Field(description="From its name.", examples=["48"])
    precision: str | None = Field(examples=["BF16"])
    num_params: int | None
    parts: list[str] = Field(description="Components of a checkpoint or pipeline.")
    adapter: AdapterView | None
    title: str | None
    problem: str | None = Field(description="Reason why it cannot be used.")
    is_untrained: bool = Field(
        False, description="A network whose final layer is all zeros: it was never trained."
    )
    sha256: str | None = Field(description="Known after a download, or the task `hash`.")


class ModelFamily(BaseModel):
    """Versions of one model, side by side."""

    name: str = Field(examples=["Chroma"])
    size: int
    paths: list[str] = Field(description="By variant, then by version, newest first.")


class ModelLibrary(BaseModel):
    """Every model in some of the studio's folders."""

    roots: list[str]
    size: int = Field(description="Total size in bytes.")
    families: list[ModelFamily]
    models: list[ModelView]


class TensorView(BaseModel):
    """A tensor that was not read."""

    name: str
    dtype: str
    shape: list[int]


class ModelDetails(BaseModel):
    """Content of a file's header."""

    model: ModelView
    metadata: dict[str, str]
    num_tensors: int
    tensors: list[TensorView] = Field(description=f"At most {MAX_TENSORS} of them.")


class DownloadItem(BaseModel):
    """One file of a repository on the Hugging Face hub."""

    repo: str = Field(examples=["lodestones/Chroma1-HD"])
    name: str
    save_as: str = Field(description="Path below `target_dir`.")


class DownloadConfig(BaseModel):
    """Configuration of the task `download`."""

    target_dir: str
    items: list[DownloadItem]


class DownloadRequest(BaseModel):
    """Body for POST /api/tasks/download/start."""

    config: DownloadConfig


class OfferView(BaseModel):
    """A model to download."""

    id: str = Field(examples=["chroma1-hd"])
    title: str
    note: str
    architecture: str
    license: str
    family: str = Field(description="Title of the family that it is listed with.", examples=["Chroma"])
    size: int = Field(description="About, in bytes.")
    is_here: bool
    download: DownloadRequest
    keys: dict[str, str] = Field(description="Configuration keys that it fills, with the paths.")


class MissingFile(BaseModel):
    """A file that a configuration is missing."""

    path: str = Field(examples=["model.vae_path"])
    reason: str
    local_paths: list[str] = Field(description="Matching local files.")
    offer: OfferView


class MissingFiles(BaseModel):
    """The files that a configuration is missing."""

    encoders: list[str] = Field(
        description="Keys of the encoders' weights that its network needs.", examples=[["model.t5_path"]]
    )
    missing: list[MissingFile]
    download: DownloadRequest | None = Field(description="All of them; null if none is missing.")


@router.get("/models", summary="List model files")
@in_group("computing")
def list_models(
    studio: StudioDep,
    root: Annotated[
        list[str],
        Query(description="Roots to scan; default: all but runs, data and cache.", examples=[["models"]]),
    ] = [],  # noqa: B006
    kind: Annotated[list[Kind], Query(description="Only these.")] = [],  # noqa: B006
) -> ModelLibrary:
    """Read from headers and names only: no tensor is loaded, and pickles are never opened."""
    folders = studio.roots.folders
    names = root or [name for name in folders if name not in _NO_MODELS]
    hashes = _hashes(studio)
    models: dict[Path, ModelView] = {}
    for name in names:
        folder = studio.roots.resolve(name, "") if name not in folders or folders[name].is_dir() else None
        for model in find([folder] if folder else []):
            wanted = not kind or model.kind in kind
            if wanted and model.path not in models and studio.roots.contains(model.path):
                models[model.path] = _view(model, name, hashes)
    found = list(models.values())
    return ModelLibrary(
        roots=names, size=sum(model.size for model in found), families=_families(found), models=found
    )


@router.get(
    "/models/details",
    summary="A file's header",
    responses=problems(NoSuchRoot, NoSuchFile, OutsideRoots),
)
@in_group("computing")
def read_details(
    studio: StudioDep,
    root: Annotated[str, Query(examples=["models"])],
    path: Annotated[str, Query(description="Relative to the root.", max_length=4096)],
) -> ModelDetails:
    """Metadata and names of the tensors."""
    place = studio.roots.resolve(root, path)
    model = look(place)
    is_whole = place.is_file() and place.suffix in SAFE and model.problem is None
    header = read_header(place) if is_whole else None
    tensors = [
        TensorView(name=name, dtype=one.dtype, shape=list(one.shape))
        for name, one in (header.tensors.items() if header else ())
    ]
    return ModelDetails(
        model=_view(model, root, _hashes(studio)),
        metadata=header.metadata if header else {},
        num_tensors=len(tensors),
        tensors=tensors[:MAX_TENSORS],
    )


@router.delete(
    "/models/file",
    summary="Delete a model file",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(NoSuchRoot, NoSuchFile, OutsideRoots, InUse, NeededToResume),
)
def delete_model(
    studio: StudioDep,
    root: Annotated[str, Query(examples=["models"])],
    path: Annotated[str, Query(description="Relative to the root.", max_length=4096)],
    force: Annotated[bool, Query(description="Also delete files that finished runs need to resume.")] = False,
) -> None:
    """Permanently delete a weights file or a partial download.

    Refused if a queued or running run needs the file or, unless `force` is true, a resumable run does.
    """
    place = studio.roots.resolve(root, path)
    if root in _NO_MODELS or not place.is_file() or not place.name.endswith((*LISTED, ".part")):
        raise NoSuchFile(path)
    require_unreferenced(studio, place)
    if not force and (names := runs_referencing(studio, place, RESUMABLE)):
        hint = "Send force=true to delete it anyway, or delete these runs first."
        raise NeededToResume(f"{place.name} is needed to resume {', '.join(names)}.", hint)
    place.unlink()
    if place.suffix == ".part":
        place.with_name(f"{place.name}.json").unlink(missing_ok=True)


@router.get("/models/offers", summary="Models to download")
def list_offers(studio: StudioDep) -> list[OfferView]:
    """Files for training, by family, from their authors' repositories."""
    return [_offer(studio, offer) for offer in OFFERS]


@router.post("/models/missing", summary="List missing model files")
@in_group("computing")
def list_missing(body: ConfigRequest, studio: StudioDep) -> MissingFiles:
    """Missing or wrong files of the model section, with the reason, local candidates and a download."""
    section: Any = body.config.get("model") or {}
    if strays := list(studio.roots.path_problems({"model": section})):
        raise Invalid.of(strays)
    folders = [
        folder for name, folder in studio.roots.folders.items() if name not in _NO_MODELS and folder.is_dir()
    ]
    model = _section(section)
    needs = missing(model, folders, _cached(body.config))
    offers = list({need.offer.id: need.offer for need in needs}.values())
    return MissingFiles(
        encoders=[f"model.{key}" for key in encoder_keys(model)],
        missing=[
            MissingFile(
                path=need.path,
                reason=need.reason,
                local_paths=[str(path) for path in need.local_paths],
                offer=_offer(studio, need.offer),
            )
            for need in needs
        ],
        download=_download(studio, offers) if offers else None,
    )


def _cached(config: dict[str, Any]) -> frozenset[str]:
    try:
        return cached_files(RunConfig.model_validate(config))
    except ValidationError:
        return frozenset()


def _section(section: Any) -> ModelSection:
    try:
        return resolve_paths(ModelSection.model_validate(section), Path())
    except ValidationError as error:
        found = [Problem(".".join(map(str, ("model", *one["loc"]))), one["msg"]) for one in error.errors()]
        raise Invalid.of(found) from None


def _view(model: ModelFile, root: str, hashes: dict[Mark | None, str]) -> ModelView:
    return ModelView(
        path=str(model.path),
        root=root,
        name=model.path.name,
        size=model.size,
        time=model.mtime_ns / 1e9,
        kind=model.kind,
        architecture=model.architecture,
        description=model.description,
        family=model.family,
        variant=model.variant,
        version=model.version,
        precision=model.precision,
        num_params=model.num_params,
        parts=list(model.parts),
        adapter=_adapter(model.adapter),
        title=model.title,
        problem=model.problem,
        is_untrained=model.is_untrained,
        sha256=hashes.get(mark_of(model.path)),
    )


def _adapter(facts: AdapterFacts | None) -> AdapterView | None:
    return AdapterView.model_validate(facts, from_attributes=True) if facts else None


def _families(models: Iterable[ModelView]) -> list[ModelFamily]:
    by_name: dict[str, list[ModelView]] = {}
    for model in models:
        if model.family:
            by_name.setdefault(model.family, []).append(model)
    return [
        ModelFamily(
            name=name,
            size=sum(one.size for one in those),
            paths=[one.path for one in sorted(those, key=_by_version)],
        )
        for name, those in sorted(by_name.items())
    ]


def _by_version(model: ModelView) -> tuple[Any, ...]:
    numbers = [-int(part) for part in (model.version or "").split(".") if part.isdecimal()]
    return model.variant or "", numbers or [1], model.path


def _hashes(studio: Studio) -> dict[Mark | None, str]:
    """Hashes computed by earlier downloads and hash tasks, newest last."""
    found: dict[Mark | None, str] = {}
    for name in ("download", "hash"):
        for run in reversed(studio.runs.store.page([], name, 500, 0)[1]):
            found |= known_hashes(studio.settings.runs_dir / run.id / "result.json")
    return found


def _offer(studio: Studio, offer: Offer) -> OfferView:
    folder = studio.roots.folders["models"]
    return OfferView(
        id=offer.id,
        title=offer.title,
        note=offer.note,
        architecture=offer.architecture,
        license=offer.license,
        family=GROUPS[offer.id],
        size=offer.size,
        is_here=all((folder / file.save_as).exists() for file in offer.files),
        download=_download(studio, [offer]),
        keys={key: str(folder / value) for key, value in offer.sets},
    )


def _download(studio: Studio, offers: Iterable[Offer]) -> DownloadRequest:
    items = [
        DownloadItem(repo=file.repo, name=file.name, save_as=file.save_as)
        for offer in offers
        for file in offer.files
    ]
    target_dir = str(studio.roots.folders["models"])
    return DownloadRequest(config=DownloadConfig(target_dir=target_dir, items=items))
