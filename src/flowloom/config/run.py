"""The configuration of a run: one schema for flags, JSON files, OpenAPI, forms and docs.

The sections up to `lora` are FLOW's (flow_format/sections.py); the others are ours. Their defaults give
FLOW's behaviour with its bugs fixed.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from flowloom import loggers as logger_parts
from flowloom import optimizers as optimizer_parts
from flowloom.config.data_sections import BatchingSection, DatasetSection, VideoSection
from flowloom.config.device_sections import MemorySection, ParallelSection
from flowloom.config.flow_format.sections import (
    Count,
    DataloaderSection,
    Fraction,
    InferenceSection,
    LoraSection,
    ModelSection,
    NamePart,
    Period,
    Steps,
    TrainingSection,
)
from flowloom.config.memory_checks import memory_contradictions
from flowloom.config.sharding import sharding_contradictions
from flowloom.config.upload_sections import HubSection, MirrorSection
from flowloom.errors import Problem
from flowloom.json_types import is_object
from flowloom.loggers.base import LoggerSpec
from flowloom.models.family import never_trained
from flowloom.optimizers.base import OptimizerSpec
from flowloom.schema import SIMPLE, Section, ui, union_of
from flowloom.storage.base import StorageSection


def _kind_or(default: str) -> BeforeValidator:
    """Settings without a `kind` get the default one."""
    return BeforeValidator(lambda given: {"kind": default} | given if is_object(given) else given)


if TYPE_CHECKING:

    class Optimizer(OptimizerSpec):
        """Any of the optimizers in optimizers/."""

        kind: str

    class Logger(LoggerSpec):
        """Any of the trackers in loggers/."""

        kind: str
else:
    Optimizer = Annotated[union_of(optimizer_parts, OptimizerSpec), _kind_or("adamw")]
    Logger = union_of(logger_parts, LoggerSpec)

ADAPTERS = ("lora", "dora", "lokr")
"""Methods that train an adapter and freeze the network."""


class MethodSection(Section):
    """Training method."""

    kind: Annotated[Literal["auto", "full", "rotation", "keywords", "lora", "dora", "lokr"], SIMPLE] = "auto"
    """auto: chosen by FLOW's keys: lora section, keywords or rotation; otherwise full."""
    rotation_states: Literal["keep", "reset"] = "keep"
    """Rotation: keep each block's optimizer state on the CPU, or reset it like FLOW."""
    always_trained: list[NamePart] = ["auto"]
    """Rotation: layers that are always trained; auto: those before and after the family's blocks, such as
    txt_in, img_in and final_layer. Without the first two, the backward pass stops at the lowest trained
    block."""
    lokr_factor: int = -1
    """LoKr: size of the Kronecker factor; -1: the most even split."""
    base_products: Literal["wide", "int8", "fp8"] = "wide"
    """LoRA, DoRA and LoKr with an 8bit base: data type of its matrix products, forward and backward. wide:
    that of the computation; int8 and fp8 are faster on GPUs and less exact."""


class AutoDensity(Section):
    """The density that suits the model's family; FLOW's for Chroma."""

    kind: Literal["auto"] = "auto"


class FlowDensity(Section):
    """FLOW's density, proportional to 2 - 7.7 (t - 0.5)^2 on [0, 1]."""

    kind: Literal["flow"] = "flow"


class UniformDensity(Section):
    """All noise levels equally likely."""

    kind: Literal["uniform"] = "uniform"


class LogitNormalDensity(Section):
    """Sigmoid of a normal distribution (Esser et al. 2024, arXiv:2403.03206)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Mean of the normal distribution."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the normal distribution."""


class ShiftedDensity(Section):
    """Uniform, then shifted towards noise: t' = s t / (1 + (s - 1) t)."""

    kind: Literal["shifted"] = "shifted"
    shift: Annotated[float, Field(gt=0)] = 3.0
    """The shift s; values above 1 give more noise."""


NoiseLevelDensity = Annotated[
    AutoDensity | FlowDensity | UniformDensity | LogitNormalDensity | ShiftedDensity,
    Field(discriminator="kind"),
    _kind_or("auto"),
]


class ObjectiveSection(Section):
    """Training objective."""

    noise_level: NoiseLevelDensity = AutoDensity()
    """Distribution of the noise levels."""
    pairing: Literal["optimal_transport", "random"] = "optimal_transport"
    """Pairing of noise with samples: minibatch optimal transport over the loaded batch, or random."""
    loss: Literal["mse", "huber"] = "mse"
    """Distance between predicted and true velocity."""
    huber_delta: Annotated[float, Field(gt=0)] = 1.0
    """Error at which the Huber loss changes from quadratic to linear."""
    mask_mode: Literal["per_sample", "flow_union"] = "per_sample"
    """Text attention mask: each sample's own length, or like FLOW the longest of its micro-batch."""
    lowercase_percentage: Fraction = 0.25
    """Fraction of captions converted to lower case."""


class LrScheduleSection(Section):
    """Learning rate after the warm-up, up to the first limit that ends the run."""

    kind: Literal["constant", "cosine", "wsd"] = "constant"
    """wsd: warm-up, stable, then linear decay."""
    decay_share: Fraction = 0.2
    """wsd: fraction of the run, at its end, in which the rate decays."""
    min_ratio: Fraction = 0.0
    """Final learning rate as a fraction of `lr`."""


class EmaSection(Section):
    """An exponential moving average of the trained weights, in float32."""

    decay: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, SIMPLE] = None
    """Decay per step; null: no EMA. Early steps use min(decay, (1 + step) / (10 + step))."""
    device: Literal["same", "cpu"] = "same"
    """Device of the averaged weights."""


class CacheSection(Section):
    """Cache of latents and text encodings."""

    latents: Annotated[Literal["off", "memory", "disk"], SIMPLE] = "off"
    """Cache of image latents, in memory or in `dir`. With a full disk cache, a run needs no VAE."""
    text: Annotated[Literal["off", "memory", "disk"], SIMPLE] = "off"
    """Cache of caption encodings, in memory or in `dir`. With a full disk cache, a run needs no T5."""
    limit_mib: Annotated[Period, ui(unit="MiB")] = 2048
    """memory: limit for latents and text together; nothing is added beyond it."""
    dir: str = "cache"
    """disk: folder of the cache. Runs, ranks and datasets can share it; `flowloom cache` and training fill
    it."""
    limit_gib: Annotated[float, Field(gt=0), ui(unit="GiB")] | None = None
    """disk: maximum size of `dir`; nothing is added beyond it. null: no limit."""
    mirror_gib: Annotated[float, Field(ge=0), ui(unit="GiB")] = 64.0
    """disk: if `dir` is in an object store, size of the local copy; 0: no copy."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """disk: data type of cached tensors; auto: that of the encoders, bf16 on CUDA, otherwise fp32."""
    sampling: Literal["mean", "draw"] = "mean"
    """Latents: the mean of the autoencoder's distribution, or a new random sample of it in each epoch."""
    caption_variants: Count = 8
    """text disk: number of variants (shuffled, shortened, lower-cased) of each caption, used in turn.
    0: a new variant each time, which needs T5 for shuffled captions."""
    quantized_gib: Annotated[float, Field(ge=0), ui(unit="GiB")] = 40.0
    """Maximum size of quantized base models in the user's cache folder: the next start reads these instead of
    the base model. The least recently used are deleted first. 0: none."""

    @property
    def is_on_disk(self) -> bool:
        """True if `dir` is used."""
        return "disk" in (self.latents, self.text)


class CheckpointSection(Section):
    """Checkpoints: how they are written, and which are kept."""

    in_background: bool = True
    """Write a checkpoint while training continues. Needs host memory for a copy of the trained weights, their
    average and the optimizer's states: with optimizer.device cpu, training waits for full weights."""

    keep_last: Annotated[Literal["auto"] | Period, SIMPLE] = "auto"
    """Number of newest checkpoints to keep. auto: all for LoRA, DoRA and LoKr; for full weights, as many as
    fit on the disk with 2 GiB to spare."""
    keep_every: Annotated[Steps | None, SIMPLE] = None
    """Also keep checkpoints whose step is a multiple of this."""


class ValidationSection(Section):
    """Validation loss on held-out rows, at fixed noise levels with fixed noise."""

    share: Annotated[float, Field(ge=0, lt=1), SIMPLE] = 0.0
    """Fraction of rows held out."""
    every: Steps | None = None
    """Validation period in steps; null: at each checkpoint."""
    max_rows: Period = 256
    """Maximum number of rows to validate."""
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = [0.1, 0.3, 0.5, 0.7, 0.9]
    """Noise levels of the validation, as quantiles of the training density."""


class PreviewSection(Section):
    """Preview settings beyond FLOW's inference sections."""

    sampler: Literal["euler", "heun", "midpoint", "dpmpp_2m"] = "euler"
    """Sampling method."""
    batch_caption: bool = True
    """Also generate a preview of a caption from the current batch, like FLOW."""
    weights: Literal["ema", "raw"] = "ema"
    """Weights used for previews; without EMA, always raw."""
    format: Literal["png", "webp"] = "png"
    """Image file format, also of the posters of clips."""
    clip_format: Literal["mp4", "webm"] = "mp4"
    """Video file format: H.264 in MP4, or VP9 in WebM."""
    max_batch: Period = 4
    """Maximum number of previews generated at once."""


class LimitsSection(Section):
    """End of the run, and limits for bad rows. FLOW trains until it is stopped."""

    max_steps: Annotated[Steps | None, SIMPLE] = None
    """Stop after this number of steps."""
    max_epochs: Annotated[Period | None, ui(simple=True, unit="epochs")] = None
    """Stop after this number of epochs."""
    max_minutes: Annotated[Annotated[float, Field(gt=0)] | None, ui(simple=True, unit="minutes")] = None
    """Stop after this number of minutes of training."""
    skipped_percentage: Fraction = 0.05
    """Stop if more than this fraction of the rows cannot be used."""
    max_megapixels: Annotated[float, Field(gt=0), ui(unit="megapixels")] = 100.0
    """Reject larger images as decompression bombs."""
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#ffffff"
    """Colour behind transparent images."""

    @property
    def has_end(self) -> bool:
        """True if the run has a limit."""
        return any((self.max_steps, self.max_epochs, self.max_minutes))


class RunConfig(Section):
    """The configuration of a run."""

    training: TrainingSection = TrainingSection()
    inference: InferenceSection | None = None
    extra_inference_config: list[InferenceSection] = []
    """More previews, each with its own prompts, period and settings."""
    dataloader: DataloaderSection = DataloaderSection()
    datasets: list[DatasetSection] = []
    """More datasets, in addition to that of `dataloader`, if it names a JSONL."""
    batching: BatchingSection = BatchingSection()
    video: VideoSection = VideoSection()
    model: ModelSection = ModelSection()
    lora: LoraSection | None = None
    method: MethodSection = MethodSection()
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: Annotated[Optimizer, SIMPLE] = Field(default={"kind": "adamw"}, validate_default=True)
    """Optimizer settings; learning rate and weight decay are in `training`."""
    lr_schedule: LrScheduleSection = LrScheduleSection()
    ema: EmaSection = EmaSection()
    cache: CacheSection = CacheSection()
    storage: StorageSection = StorageSection()
    memory: MemorySection = MemorySection()
    parallel: ParallelSection = ParallelSection()
    checkpoint: CheckpointSection = CheckpointSection()
    validation: ValidationSection = ValidationSection()
    preview: PreviewSection = PreviewSection()
    limits: LimitsSection = LimitsSection()
    loggers: list[Logger] = []
    """Experiment trackers, in addition to `events.jsonl`."""
    hub: HubSection = HubSection()
    mirror: MirrorSection = MirrorSection()

    @property
    def method_kind(self) -> Literal["full", "rotation", "keywords", "lora", "dora", "lokr"]:
        """The method, with `auto` resolved from FLOW's keys."""
        if self.method.kind != "auto":
            return self.method.kind
        if self.lora:
            return "lora"
        if self.training.trained_layer_keywords:
            return "keywords"
        return "rotation" if self.training.change_layer_every else "full"

    @property
    def resolutions(self) -> list[int]:
        """All base resolutions in use."""
        own = [side for section in self.datasets for side in section.base_resolution or ()]
        return [*self.dataloader.base_resolution, *own]

    @property
    def previews(self) -> list[InferenceSection]:
        """All inference sections, the main one first."""
        return [*([self.inference] if self.inference else []), *self.extra_inference_config]

    @model_validator(mode="before")
    @classmethod
    def _adapter_has_settings(cls, given: Any) -> Any:
        """`method.kind` lora, dora or lokr without a lora section uses the section's defaults."""
        if is_object(given) and given.get("lora") is None:
            method = given.get("method")
            if is_object(method) and method.get("kind") in ADAPTERS:
                return {**given, "lora": {}}
        return given

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> RunConfig:
        problems = [
            *self._method_contradictions(),
            *self._other_contradictions(),
            *memory_contradictions(self),
            *self._data_contradictions(),
            *sharding_contradictions(self),
        ]
        if problems:
            text = "; ".join(str(problem) for problem in problems)
            raise PydanticCustomError("contradiction", "{text}", {"text": text, "problems": problems})
        return self

    def _method_contradictions(self) -> Iterator[Problem]:
        training = self.training
        if self.method_kind == "rotation":
            if training.change_layer_every is None:
                yield Problem(
                    "training.change_layer_every", "is needed by method rotation: steps between rotations."
                )
            if not (training.trained_single_blocks or 0) + (training.trained_double_blocks or 0):
                message = "method rotation needs this or training.trained_double_blocks above 0."
                yield Problem("training.trained_single_blocks", message)
        if self.method_kind == "keywords" and not training.trained_layer_keywords:
            message = "method keywords needs at least one keyword, such as double_blocks.0."
            yield Problem("training.trained_layer_keywords", message)
        named = (
            ("training.trained_layer_keywords", training.trained_layer_keywords),
            ("method.always_trained", self.method.always_trained),
            ("lora.target_layers", self.lora.target_layers if self.lora else []),
        )
        for path, names in named:
            for part, reason in never_trained().items():
                if any(part in name for name in names):
                    yield Problem(path, f"{part} is never trained, because {reason}. Remove it.")

    def _other_contradictions(self) -> Iterator[Problem]:
        level = self.lora.base_model_quant_level if self.lora else "full"
        if self.method.base_products != "wide" and self.method_kind in ADAPTERS and level != "8bit":
            message = f"{self.method.base_products} needs lora.base_model_quant_level 8bit, not {level}."
            yield Problem("method.base_products", message)
        if self.cache.text == "disk" and self.objective.mask_mode == "flow_union":
            message = "must be off with objective.mask_mode flow_union, where encodings depend on the batch."
            yield Problem("cache.text", message)
        if self.lr_schedule.kind != "constant" and not self.limits.has_end:
            kind = self.lr_schedule.kind
            message = f"{kind} needs a known end: set limits.max_steps, max_epochs or max_minutes."
            yield Problem("lr_schedule.kind", message)

    def _data_contradictions(self) -> Iterator[Problem]:
        data, sizes = self.dataloader, self.batching.sizes
        for i, own in enumerate(self.datasets):
            if own.repeats and own.weight:
                message = "cannot be combined with repeats: remove one of them."
                yield Problem(f"datasets.{i}.weight", message)
        others = ((f"datasets.{i}", own) for i, own in enumerate(self.datasets))
        for path, section in (("dataloader", data), *others):
            step = section.resolution_step or data.resolution_step
            smallest = min(section.base_resolution or data.base_resolution)
            if step > smallest:
                message = (
                    f"must not exceed base_resolution {smallest}: a grid of {step} pixels has no buckets."
                )
                yield Problem(f"{path}.resolution_step", message)
            if section.mask == "folder" and not section.mask_folder_path:
                yield Problem(f"{path}.mask_folder_path", "is needed: the folder with the masks.", "missing")
        if sizes and len(sizes) != len(data.base_resolution):
            count = len(data.base_resolution)
            message = f"has {len(sizes)} batch sizes for {count} base resolutions: set one for each."
            yield Problem("batching.sizes", message)
