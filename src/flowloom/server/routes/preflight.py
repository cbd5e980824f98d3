"""What a run will take, told before it starts: by a process of its own, as the trainer names it."""

from __future__ import annotations

import json
import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flowloom.server.datasets.subprocess_task import Failed, TakesLong, last_words, run_process
from flowloom.server.deps import StudioDep, TrainerDep
from flowloom.server.off_loop import Router, in_group
from flowloom.server.problems import Invalid, NoSuchTrainer, ServiceError, problems
from flowloom.server.runs.create import problems_of


class NoPreflight(ServiceError):
    status, code, title = 404, "no-preflight", "This trainer tells nothing beforehand."


router = Router(tags=["training"], responses=problems(NoSuchTrainer, NoPreflight, TakesLong, Failed))


class Question(BaseModel):
    """A run, to be examined before it starts."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any] = Field(examples=[{"dataloader": {"jsonl_metadata_path": "data/fox.jsonl"}}])
    gpu_gib: float | None = Field(None, gt=0, le=10_000, description="Of a CUDA card that is not here.")
    samples_per_s: float | None = Field(None, gt=0, le=10**6, description="A known rate.")


class Trouble(BaseModel):
    """Something that the run would end at."""

    path: str = Field(description="Of the configuration.", examples=["datasets.0.subsets.0.image_dir"])
    message: str


class Examination(BaseModel):
    """What a run takes; a section is empty where nothing can be told of it."""

    can_run: bool
    problems: list[Trouble]
    data: dict[str, Any] = Field(
        description="`rows`, `steps_per_epoch`, `buckets` with `width`, `height`, `rows`, and `left_out` by "
        "reason; of Kohya `pictures`, `batches`, `steps` and `epochs` as well.",
        examples=[{"rows": 40, "steps_per_epoch": 40}],
    )
    memory: dict[str, Any] = Field(
        description="Bytes: `parts` by name, `total`, `free`, `fits`; what is `not_counted`.",
        examples=[{"parts": {"network": 8_900_000_000}, "fits": True}],
    )
    disk: dict[str, Any] = Field(
        description="Bytes: `parts` by name, `total`, `free`, `fits`; `kept` checkpoints at a time.",
        examples=[{"parts": {"checkpoints": 912_000_000}, "fits": True}],
    )
    time: dict[str, Any] = Field(
        description="`samples_per_s` (null: not known) and its `source`; seconds of a step, an epoch, all.",
        examples=[{"samples_per_s": 1.4, "source": "as given"}],
    )
    advice: list[str] = Field(
        description="What to change where it does not fit, in this order and together.",
        examples=[["set memory.fp8_base to true: then 14.1 GB in all"]],
    )
    hints: list[str] = Field([], description="What ends no run, and may not be meant.")


@router.post("/{trainer}/preflight", summary="Examine a run before it starts")
@in_group("waiting")
def preflight(trainer: TrainerDep, body: Question, studio: StudioDep) -> Examination:
    """Steps, buckets, rows left out, memory, disk, time; and what to change where it does not fit.

    `GET /api/trainers` says which trainers can be asked: FLOW and Kohya. Kohya's buckets, steps and epochs
    are those that sd-scripts makes; its memory is a coarse estimate, which names what it does not count.
    """
    if not trainer.preflight_command:
        todo = "POST its /config checks the configuration; its first steps show what it takes."
        raise NoPreflight(f"{trainer.title} cannot be asked what a run will take.", todo)
    if found := problems_of(studio, trainer, body.config):
        raise Invalid.of(found)
    path = studio.settings.state_dir / f"preflight-{secrets.token_hex(8)}.json"
    words = [*trainer.preflight_command, str(path), "--runs-dir", str(studio.settings.runs_dir)]
    words += ["--gpu-gib", str(body.gpu_gib)] if body.gpu_gib else []
    words += ["--samples-per-s", str(body.samples_per_s)] if body.samples_per_s else []
    try:
        path.write_text(json.dumps(body.config))
        done = run_process(words)
    finally:
        path.unlink(missing_ok=True)
    try:
        return Examination.model_validate_json(done.stdout)
    except ValueError:
        told = last_words(done.stderr).replace(str(path), "config")
        raise Failed(told, "Mend it, and ask again.") from None
