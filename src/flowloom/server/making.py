"""New runs: checked, written and queued in one breath."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flowloom.errors import Problem
from flowloom.server.deps import Studio
from flowloom.server.problems import Invalid
from flowloom.server.runs import NAME, RunView
from flowloom.spec.rundir import default_name
from flowloom.trainers.base import Trainer


class NewRun(BaseModel):
    """A run to be made."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(
        None,
        pattern=f"^{NAME.pattern}$",
        description="Of its directory; none: one is made up.",
        examples=["fox-lora"],
    )
    config: dict[str, Any] = Field(
        description="As GET config describes it.", examples=[{"training": {"lr": 1e-4}}]
    )
    devices: list[str] = Field([], description="None: the first one.", examples=[["cuda:0"]])
    first: bool = Field(False, description="Go before all that wait.")


def problems_of(studio: Studio, trainer: Trainer, config: dict[str, Any]) -> list[Problem]:
    """Everything that is wrong with a configuration."""
    strays = list(studio.roots.strays(config))
    # What lies outside of the folders is not looked at: whether it is there is nobody's business.
    return strays or trainer.check(config)


def make_run(studio: Studio, trainer: Trainer, new: NewRun, source: str = "the studio") -> RunView:
    """Make and queue a run: whole, or not at all.

    Raises:
        Invalid: with everything that is wrong.
        NameTaken: there is such a run.
    """
    if problems := problems_of(studio, trainer, new.config):
        raise Invalid.of(problems)
    studio.queue.require_devices(new.devices)
    name = new.name or default_name(trainer.name)
    with studio.shelf.making(name) as run_dir:
        trainer.prepare(new.config, run_dir, source)
        studio.queue.submit(run_dir, new.devices, first=new.first)
    return studio.shelf.look(name)


def patched(value: Any, patch: Any) -> Any:
    """`value` with a JSON merge patch (RFC 7396) laid over it."""
    if not isinstance(patch, dict):
        return patch
    base = value if isinstance(value, dict) else {}
    merged = base | {name: patched(base.get(name), change) for name, change in patch.items()}
    return {name: item for name, item in merged.items() if not (name in patch and patch[name] is None)}
