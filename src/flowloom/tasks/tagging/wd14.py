"""WD14 taggers: SmilingWolf's networks as ONNX files, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowloom.data.images.decode import load_image
from flowloom.data.images.headers import image_size
from flowloom.errors import ConfigError, OutOfMemoryError, Problem, WeightsError
from flowloom.tasks.tag import LABELS, MODEL, TagConfig
from flowloom.tasks.tagging.merging import Description
from flowloom.tasks.tagging.tags import TagRules, read_labels

WHITE = (255, 255, 255)
EXACT = 4
"""Images up to this many times the network's side are scaled once; larger ones are decoded smaller."""


class Wd14Tagger:
    """A `Captioner`: images to tags."""

    def __init__(self, folder: Path, config: TagConfig, about: dict[str, Any]):
        """
        Raises:
            WeightsError: a file is missing or damaged, or they do not match.
            ConfigError: there is no such device.
        """
        self.config = config
        self.labels = read_labels(folder / LABELS)
        self.rules = TagRules(self.labels, config)
        self._session = _open_session(folder / MODEL, config.device)
        given = self._session.get_inputs()[0]
        self._input = given.name
        self.side = _side(folder / MODEL, given.shape)
        self._batch = given.shape[0] if isinstance(given.shape[0], int) else config.batch_size
        self.about = about | {"device": self._session.get_providers()[0].removesuffix("ExecutionProvider")}

    def prepare(self, image: bytes) -> NDArray[np.float32]:
        """See Captioner: (side, side, 3), blue first, 0 to 255, padded to a square with white."""
        return to_square(image, self.side, self.config.max_megapixels)

    def describe(self, images: Sequence[Any], names: Sequence[str]) -> list[Description]:  # noqa: ARG002
        """See Captioner."""
        return [self.rules.describe(row) for row in self.probabilities(images)]

    def probabilities(self, images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """(B, T) of prepared images.

        Raises:
            WeightsError: the output has another shape or range.
        """
        parts: list[NDArray[np.float32]] = []
        for start in range(0, len(images), self._batch):
            batch = np.stack(images[start : start + self._batch])
            parts.append(self._run(batch))
        found = np.concatenate(parts)
        if found.shape != (len(images), len(self.labels.names)):
            raise WeightsError(
                f"{MODEL} has {found.shape[-1]} outputs per image, but {LABELS} names "
                f"{len(self.labels.names)} tags: use both files of one model."
            )
        if not (np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1):
            raise WeightsError(f"{MODEL} returns {found.min():g} to {found.max():g}, not probabilities.")
        return found

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return self._session.run(None, {self._input: batch})[0]
        except _onnx_errors() as error:
            if "memory" not in str(error).lower():
                raise WeightsError(f"{MODEL} cannot be run: {error}") from error
            raise OutOfMemoryError(
                f"{len(batch)} images at once are too many for the device's memory: lower batch_size, then "
                "resume the run."
            ) from error


def to_square(image: bytes, side: int, max_megapixels: float) -> NDArray[np.float32]:
    """The image as SmilingWolf's networks were trained: on a white square, bicubic, BGR, 0 to 255.

    Raises:
        ImageError: as `load_image`.
    """
    width, height = image_size(image)
    shrink = max(1.0, max(width, height) / (EXACT * side))
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    pixels = load_image(image, size, WHITE, max_megapixels)
    square = Image.new("RGB", (max(size), max(size)), WHITE)
    square.paste(Image.fromarray(pixels), ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    if max(size) != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32)[:, :, ::-1]


def _side(path: Path, shape: Sequence[Any]) -> int:
    sizes = list(shape[1:])
    if len(shape) != 4 or sizes[2] != 3 or not isinstance(sizes[0], int) or sizes[0] != sizes[1]:
        raise WeightsError(
            f"{path}: takes {list(shape)}, not images as (batch, side, side, 3): not a WD14 tagger."
        )
    return sizes[0]


def _open_session(path: Path, device: str) -> Any:
    """The network at `path`, ready to run.

    Raises:
        WeightsError: it is missing or damaged.
        ConfigError: there is no such device.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.")
    try:
        import onnxruntime
    except ImportError as error:
        raise WeightsError("Tagging needs onnxruntime: pip install 'flowloom[taggers]'") from error
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        hint = "install onnxruntime-gpu instead of onnxruntime, or set device to auto"
        raise ConfigError("the configuration", [Problem("device", f"onnxruntime has no CUDA here: {hint}.")])
    providers = ["CPUExecutionProvider"]
    if has_cuda and device != "cpu":
        onnxruntime.preload_dlls()  # CUDA's libraries as torch brought them
        providers.insert(0, "CUDAExecutionProvider")
    options: Any = onnxruntime.SessionOptions()  # pyright: ignore[reportUnknownVariableType]
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except _onnx_errors() as error:
        raise WeightsError(f"{path}: onnxruntime cannot open it ({error}). Download it again.") from error


def _onnx_errors() -> tuple[type[Exception], ...]:
    """Errors of onnxruntime, which have no common base class."""
    import onnxruntime.capi.onnxruntime_pybind11_state as state  # pyright: ignore[reportMissingImports]

    names = "Fail InvalidArgument InvalidGraph InvalidProtobuf NoModel NotImplemented RuntimeException EPFail"
    return tuple(getattr(state, name) for name in names.split())
