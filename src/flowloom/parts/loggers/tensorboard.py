"""TensorBoard, through torch's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from flowloom.parts.loggers.base import Logger, LoggerSpec


class TensorBoard(LoggerSpec):
    """Scalars and samples for TensorBoard, in the run directory's `tensorboard/`."""

    kind: Literal["tensorboard"] = "tensorboard"

    def build(self, run_dir: Path, config: dict[str, Any]) -> Logger:
        raise NotImplementedError
