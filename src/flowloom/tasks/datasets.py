"""Data sets read, written in other forms, and looked over, as runs of the studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flowloom.datasets.build.detect import Unclear, detect
from flowloom.datasets.build.fresh import recipe_of
from flowloom.datasets.build.options import BuildOptions, Kind
from flowloom.errors import DataError, Problem
from flowloom.schema import Section
from flowloom.storage.base import StorageSection, scheme_of
from flowloom.tasks.base import Task
from flowloom.tasks.import_dataset import TASK as IMPORT

_WORK = "flowloom.tasks.dataset_work"


class BuildConfig(Section):
    """What `flowloom dataset build` is told."""

    source_path: str
    """A folder, Kohya's folders or TOML, a table, tars, a saved Hugging Face data set, or s3://BUCKET/FOLDER."""
    out_path: str
    """The JSONL; replaced when everything is read."""
    form: Kind = "auto"
    """How the source is read; auto: seen from it. kohya: the numbers of its folders are repeats."""
    captions: Literal["auto", "tags", "prose"] = "auto"
    """What captions are; auto: seen from each one."""
    default_caption: str | None = None
    """For pictures without one; null: they are left out and told."""
    each_line: bool = False
    """Every line of a text file is a caption of its own; they take turns over the epochs."""
    caption_encoding: str = "utf-8"
    """Of text files without a mark."""
    # What a row may have (data/row_checks.py).
    loss_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Where none is recorded."""
    with_repeats: bool = True
    """Kohya's repeats become that many rows."""
    storage: StorageSection = Field(default_factory=StorageSection, description="How a bucket is reached.")


class UpdateConfig(Section):
    """What `flowloom dataset update` is told."""

    jsonl_path: str
    """A JSONL that was built from a folder."""
    source_path: str
    """That folder, as the JSONL's build recorded it."""
    images_dir: str
    """What names in the JSONL are relative to, as recorded."""


class ExportConfig(Section):
    """What `flowloom dataset export` is told."""

    jsonl_path: str
    """FLOW's JSONL."""
    out_path: str
    """The folder or file to write, which is not there yet."""
    to: Literal["kohya", "kohya-toml", "webdataset", "parquet"] = "kohya"
    """kohya: folders REPEATS_NAME; kohya-toml: one file, the pictures stay where they are."""
    images_dir: str | None = None
    """What names are relative to; null: as the JSONL was built."""
    link: Literal["copy", "hard", "soft"] = "copy"
    """Kohya's folders: how pictures get there."""
    name: str = ""
    """Of Kohya's folder or the shards; empty: the JSONL's."""
    shard_mib: Annotated[int, Field(ge=1)] = 1024
    """Of a webdataset's tars."""
    with_pictures: bool = True
    """Parquet: the pictures themselves, or only their names."""


class LintConfig(Section):
    """What `flowloom dataset lint` is told."""

    source_path: str
    """FLOW's JSONL, or a folder of pictures with captions."""
    form: Kind = "auto"
    """How a folder is read; auto: seen from it. kohya: the numbers of its folders are repeats."""
    images_dir: str | None = None
    """What names are relative to; null: as the JSONL was built."""
    # Buckets are made one by one, and become more as it grows.
    base_resolution: Annotated[list[Annotated[int, Field(ge=64, le=2**16)]], Field(min_length=1)] = [512]
    """Of the buckets."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Rows of a batch."""
    tokenizer_path: str | None = None
    """T5's; null: tokens are not counted."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """What training cuts captions to."""
    # Pictures that have nothing to do with each other differ in half of the bits: beyond that all are alike.
    near_bits: Annotated[int, Field(ge=-1, le=64)] = 8
    """Bits of 128 in which pictures that look alike may differ; -1 looks for none."""
    with_pictures: bool = True
    """Off: only names and captions are read."""
    with_urls: bool = False
    """Fetch pictures from addresses, too."""


def _look_at_source(config: BuildConfig | LintConfig) -> list[Problem]:
    if not scheme_of(config.source_path) and not Path(config.source_path).exists():
        return [Problem("source_path", f"{config.source_path} is not there.")]
    return []


def _look_at_form(config: BuildConfig | LintConfig) -> list[Problem]:
    """A folder that can be read in several ways is asked about before anything starts."""
    if config.form != "auto" or not Path(config.source_path).is_dir():
        return []
    try:
        detect(config.source_path, BuildOptions()).checked()
    except Unclear as error:
        return [Problem("form", str(error))]
    except DataError as error:
        return [Problem("source_path", str(error))]
    return []


def _look_at_lint(config: LintConfig) -> list[Problem]:
    return _look_at_source(config) + _look_at_form(config)


def _look_at_build(config: BuildConfig) -> list[Problem]:
    problems = _look_at_source(config) + _look_at_form(config)
    if scheme_of(config.source_path) not in ("", "s3", "gs", "az"):
        problems.append(Problem("source_path", "give a path, or s3://, gs:// or az://BUCKET/FOLDER."))
    if not config.out_path.lower().endswith(".jsonl"):
        problems.append(Problem("out_path", "its name must end in .jsonl."))
    return problems


def _look_at_update(config: UpdateConfig) -> list[Problem]:
    recipe = recipe_of(Path(config.jsonl_path))
    if recipe is None:
        return [Problem("jsonl_path", f"{config.jsonl_path} was not built from a folder that is here.")]
    found = recipe.source, str(recipe.options.root or recipe.source)
    if found != (config.source_path, config.images_dir):
        return [Problem("source_path", f"{config.jsonl_path} was built from {recipe.source}.")]
    return []


def _look_at_export(config: ExportConfig) -> list[Problem]:
    problems: list[Problem] = []
    if not Path(config.jsonl_path).is_file():
        problems.append(Problem("jsonl_path", f"{config.jsonl_path} is not there."))
    if Path(config.out_path).exists():
        problems.append(Problem("out_path", f"{config.out_path} is there already: name another one."))
    return problems


BUILD = Task(
    name="dataset-build",
    title="Build a JSONL",
    config_type=BuildConfig,
    work=f"{_WORK}:build_in_a_run",
    needs_device=False,
    look=_look_at_build,
)
UPDATE = Task(
    name="dataset-update",
    title="Update a JSONL",
    config_type=UpdateConfig,
    work=f"{_WORK}:update_in_a_run",
    needs_device=False,
    look=_look_at_update,
)
EXPORT = Task(
    name="dataset-export",
    title="Export a data set",
    config_type=ExportConfig,
    work=f"{_WORK}:export_in_a_run",
    needs_device=False,
    look=_look_at_export,
)
LINT = Task(
    name="dataset-lint",
    title="Lint a data set",
    config_type=LintConfig,
    work=f"{_WORK}:lint_in_a_run",
    needs_device=False,
    look=_look_at_lint,
)
TASKS = (BUILD, UPDATE, EXPORT, LINT, IMPORT)
