"""TensorBoard, through torch's own writer."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flowloom.errors import TrainingError
from flowloom.loggers.base import Logger, LoggerSpec, cannot_open, previews, scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(LoggerSpec):
    """Scalars and samples for TensorBoard, in the run directory's `tensorboard/`."""

    kind: Literal["tensorboard"] = "tensorboard"
    images: bool = True
    """Show the previews as well."""

    def build(self, run_dir: Path, config: dict[str, Any]) -> Logger:  # noqa: ARG002
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise cannot_open("tensorboard", error, "pip install 'flowloom[tensorboard]'") from error
        return _TensorBoardLogger(self, run_dir, SummaryWriter(run_dir / "tensorboard"))


class _TensorBoardLogger:
    def __init__(self, spec: TensorBoard, run_dir: Path, writer: SummaryWriter):
        self.spec = spec
        self.run_dir = run_dir
        self.writer = writer

    def log(self, event: dict[str, Any]) -> None:
        step = event.get("step", 0) + self.spec.first_step
        try:
            for name, value in scalars(event).items():
                self.writer.add_scalar(name, value, step)
            for name, path, _ in previews(self.run_dir, event) if self.spec.images else ():
                self.writer.add_image(name, _pixels(path), step, dataformats="HWC")
            if event["kind"] != "step":  # curves of steps may wait for the writer's interval
                self.writer.flush()
        except (OSError, ValueError) as error:
            raise TrainingError(f"tensorboard: {error}. The run continues without it.") from error

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self.writer.close()


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
