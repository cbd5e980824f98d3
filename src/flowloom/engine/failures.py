"""An error that ends a run, as one line that says what went wrong, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
import torch.distributed as dist

from flowloom.errors import (
    CheckpointError,
    CompileError,
    DivergedError,
    FlowloomError,
    OutOfMemoryError,
    RankError,
    StoreDenied,
    TrainingError,
    WeightsError,
    disk_full,
    is_disk_full,
    one_line,
)
from flowloom.models.weights import open_weights
from flowloom.run.directory import RunDir

COMPILERS = ("torch._dynamo", "torch._inductor")


def explained(error: Exception, run_dir: RunDir) -> FlowloomError:
    """Return the error as one of ours, with a hint; others are cut to one line, log.txt has the rest."""
    failure = _as_ours(error, run_dir)
    failure.hint = failure.hint or hint(failure, run_dir)
    return failure


def _as_ours(error: Exception, run_dir: RunDir) -> FlowloomError:
    if isinstance(error, DivergedError) and error.step == 1:
        return _damaged_base(run_dir) or error
    if isinstance(error, FlowloomError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return OutOfMemoryError(
            f"Out of memory ({one_line(str(error))}). Lower training.train_minibatch (it does not change the "
            "result), set memory.checkpointed_blocks to all, or train a LoRA with "
            "lora.base_model_quant_level 8bit."
        )
    if isinstance(error, OSError) and is_disk_full(error):
        return disk_full(run_dir.path, error)
    if is_lost_rank(error):
        # Without gloo's source file before it and its explanation behind it.
        reason = re.sub(r"^\[[^\]]*\] ", "", one_line(str(error))).split(". ")[0]
        return RankError(
            f"Another rank of this run ended or cannot be reached ({reason}). If it failed, the reason is in "
            f"{run_dir.log_txt} or in its output; if not, it was killed or its machine is gone."
        )
    causes = list(_causes(error))
    if any(type(cause).__module__.startswith(COMPILERS) for cause in causes):
        return CompileError(
            f"torch.compile failed: {_compiler_line(causes)}. Set memory.compile to false, or install a C++ "
            f"compiler that works. {run_dir.log_txt} has the full text."
        )
    message = f"{type(error).__name__}: {one_line(str(error))}".rstrip(": ")
    return TrainingError(f"{message}. {run_dir.log_txt} has the full text.")


def is_lost_rank(error: BaseException) -> bool:
    """True if communication failed: another rank ended, or the network between them."""
    return any(
        isinstance(cause, dist.DistError) or (isinstance(cause, RuntimeError) and "gloo" in str(cause))
        for cause in _causes(error)
    )


def _damaged_base(run_dir: RunDir) -> WeightsError | None:
    """The fault of the base model in a run whose first loss is not finite; None if it has none."""
    path = run_dir.read_config().model.network_path
    if not path.exists():  # in a store
        return None
    for name, weight in open_weights(path).items():
        if not torch.isfinite(weight.float()).all():
            return WeightsError(
                f"{path}: its weight {name} holds a NaN or an infinity, so every loss does. The file is "
                "damaged, or its training diverged: download it again, or choose another model."
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, the first cause last."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        yield at
        at = at.__cause__ or at.__context__


def _compiler_line(causes: list[BaseException]) -> str:
    """The compiler's own line where it printed one, else the message of the first cause."""
    lines = [line for cause in causes for line in str(cause).splitlines()]
    own = next((line for line in lines if "error:" in line), None)
    return one_line(own or str(causes[-1])).rstrip(".")


def hint(failure: FlowloomError, run_dir: RunDir) -> str:
    """A hint after `failure`: the checkpoint that the run continues from, or that there is none."""
    checkpoints = run_dir.checkpoints()
    names = [folder.name for folder in checkpoints]
    resume = f"'flowloom resume {run_dir.path}' (or the button on the run's page)"
    if isinstance(failure, CheckpointError):
        others = [name for name in names if name != failure.folder.name]
        then = f"the run then continues from {others[-1]}" if others else "the run then starts from step 0"
        return f"Delete {failure.folder}, then {resume}: {then}."
    if not names:
        return f"No checkpoint was saved. Fix the cause, then {resume}: the run starts from step 0."
    if isinstance(failure, DivergedError) and names[-1] == run_dir.checkpoint_dir(failure.step - 1).name:
        other = f"delete it and resume from {names[-2]}" if names[1:] else "start a new run"
        return (
            f"The last good checkpoint is {names[-1]}, saved right before this step. Change the settings, "
            f"then {resume}; if the same step fails again, {other}."
        )
    cause = "Renew the keys" if isinstance(failure, StoreDenied) else "Fix the cause"
    return f"The last good checkpoint is {names[-1]}. {cause}, then {resume}: it continues from there."
