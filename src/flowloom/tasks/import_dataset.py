"""Bring a data set from an address or from the Hugging Face hub, as a run of the studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from flowloom.errors import Problem
from flowloom.run.directory import RunDir
from flowloom.schema import Section
from flowloom.tasks.base import Task
from flowloom.tasks.download import Repo, Revision, Sha256, Text, is_below, url_trouble


class ImportConfig(Section):
    """Where a data set comes from, and where it goes."""

    target_dir: Text
    """The folder that it becomes; it must not be there yet. Of a table, NAME.jsonl is built beside it."""
    url: Text = ""
    """Of a zip, tar or table. HF_TOKEN is sent to the hub alone."""
    repo: Repo = ""
    """Or a data set of the Hugging Face hub, OWNER/NAME."""
    revision: Revision = "main"
    """Branch, tag or commit of the repository; what it is at the beginning is what is brought."""
    below: Text = ""
    """A folder of the repository: only what lies below it; empty: everything."""
    sha256: Sha256 = ""
    """What the file at `url` must be; for large files of the hub it is known without."""
    encoding: Annotated[str, StringConstraints(pattern=r"^[\w.-]*$", max_length=40)] = Field(
        "", examples=["cp932"]
    )
    """Of names in an archive that does not say; empty: UTF-8."""


def _look(config: ImportConfig) -> list[Problem]:
    problems: list[Problem] = []
    target = Path(config.target_dir).expanduser()
    if bool(config.repo) == bool(config.url):
        problems.append(Problem("url", "give url, or repo."))
    elif config.url and (trouble := url_trouble(config.url)):
        problems.append(Problem("url", trouble))
    if config.below and not is_below(config.below):
        problems.append(Problem("below", "leads out of the repository."))
    if RunDir.around(target):
        problems.append(Problem("target_dir", "lies in a run, which is the run's own."))
    elif target.name.startswith(".") or target.exists() or table_of(target).exists():
        problems.append(
            Problem("target_dir", f"{target} or {table_of(target).name} is there already, or is hidden.")
        )
    return problems


def table_of(target: Path) -> Path:
    """The JSONL of a data set that came as a table."""
    return target.with_name(f"{target.name}.jsonl")


TASK = Task(
    name="dataset-import",
    title="Bring a data set",
    config_type=ImportConfig,
    work="flowloom.tasks.importing:work",
    needs_device=False,
    look=_look,
)
