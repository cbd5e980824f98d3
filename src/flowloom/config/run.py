"""What a run is: one schema for flags, JSON files, OpenAPI, forms and docs.

The sections up to `lora` are FLOW's (flow_sections.py); those after it are ours, and their defaults give
FLOW's behaviour with its faults mended.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from flowloom import loggers as logger_parts
from flowloom import optimizers as optimizer_parts
from flowloom.config.data_sections import BatchingSection, DatasetSection
from flowloom.config.flow_format.sections import (
    Count,
    DataloaderSection,
    Fraction,
    InferenceSection,
    LoraSection,
    ModelSection,
    NamePart,
    Period,
    TrainingSection,
)
from flowloom.errors import Problem
from flowloom.loggers.base import LoggerSpec
from flowloom.optimizers.base import OptimizerSpec
from flowloom.schema import Section, union_of
from flowloom.storage.base import StorageSection


def _kind_or(default: str) -> BeforeValidator:
    """Settings without a `kind` are those of the default one."""
    return BeforeValidator(lambda given: {"kind": default} | given if isinstance(given, dict) else given)


if TYPE_CHECKING:

    class Optimizer(OptimizerSpec):
        """Any of the parts in parts/optimizers."""

        kind: str

    class Logger(LoggerSpec):
        """Any of the parts in parts/loggers."""

        kind: str
else:
    Optimizer = Annotated[union_of(optimizer_parts, OptimizerSpec), _kind_or("adamw")]
    Logger = union_of(logger_parts, LoggerSpec)

APPROXIMATOR = "distilled_guidance_layer"
"""The part of Chroma that is never trained: training it is known to break the network."""
ADAPTERS = ("lora", "dora", "lokr")
"""The methods that train an adapter beside a frozen network."""


class MethodSection(Section):
    """What is trained."""

    kind: Literal["auto", "full", "rotation", "keywords", "lora", "dora", "lokr"] = "auto"
    """`auto` reads it from FLOW's keys: a lora section, keywords, rotation, or else full."""
    rotation_states: Literal["keep", "reset"] = "keep"
    """Rotation: keep each block's optimizer state on the CPU, or start afresh as FLOW does."""
    always_trained: list[NamePart] = ["txt_in", "img_in", "final_layer"]
    """Rotation: parts trained beside the drawn blocks; without the first two, the backward pass stops at
    the lowest trained block."""
    lokr_factor: int = -1
    """LoKr: size of the Kronecker factor; -1 picks the most even split."""


class FlowDensity(Section):
    """FLOW's density, proportional to 2 - 7.7 (t - 0.5)^2 on [0, 1]."""

    kind: Literal["flow"] = "flow"


class UniformDensity(Section):
    """Every noise level equally often."""

    kind: Literal["uniform"] = "uniform"


class LogitNormalDensity(Section):
    """sigmoid of a normal (Esser et al. 2024, arXiv:2403.03206)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    """Mean of the normal."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the normal."""


class ShiftedDensity(Section):
    """Uniform, then moved towards noise: t' = s t / (1 + (s - 1) t)."""

    kind: Literal["shifted"] = "shifted"
    shift: Annotated[float, Field(gt=0)] = 3.0
    """s; above 1 draws more noise."""


NoiseLevelDensity = Annotated[
    FlowDensity | UniformDensity | LogitNormalDensity | ShiftedDensity,
    Field(discriminator="kind"),
    _kind_or("flow"),
]


class ObjectiveSection(Section):
    """What the network learns."""

    noise_level: NoiseLevelDensity = FlowDensity()
    """How often each noise level is drawn."""
    pairing: Literal["optimal_transport", "random"] = "optimal_transport"
    """How noises are given to samples: by minibatch optimal transport over the loaded batch, or as drawn."""
    loss: Literal["mse", "huber"] = "mse"
    """Distance between predicted and true velocity."""
    huber_delta: Annotated[float, Field(gt=0)] = 1.0
    """Where Huber's loss turns from square to linear."""
    mask_mode: Literal["per_sample", "flow_union"] = "per_sample"
    """Each sample sees its own text, or, as FLOW does, the longest of its micro-batch."""
    lowercase_percentage: Fraction = 0.25
    """Share of captions that are lower-cased."""


class LrScheduleSection(Section):
    """The learning rate after FLOW's warm-up, over the run as the nearest of its limits ends it."""

    kind: Literal["constant", "cosine", "wsd"] = "constant"
    """wsd: warm-up, stable, then a linear decay over the last part."""
    decay_share: Fraction = 0.2
    """wsd: the last share of the run in which the rate decays."""
    min_ratio: Fraction = 0.0
    """Where the decay ends, after the last step, as a share of `lr`."""


class EmaSection(Section):
    """An exponential moving average of the trained weights, in float32."""

    decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay a step; null turns it off. Early on min(decay, (1 + step) / (10 + step)) is used."""
    device: Literal["same", "cpu"] = "same"
    """Where the average lies."""


class CacheSection(Section):
    """What is kept instead of encoded again."""

    latents: Literal["off", "memory", "disk"] = "off"
    """Latents of images already seen: in memory, or in `dir`, so that later runs need no VAE."""
    text: Literal["off", "memory", "disk"] = "off"
    """Encoder states of captions already seen: in memory, or in `dir`, so that later runs need no T5."""
    limit_mib: Period = 2048
    """memory: for both together; when it is used up, no more is taken in."""
    dir: str = "cache"
    """disk: folder, shared by as many runs, ranks and data sets as there are; filled by `flowloom cache`,
    and by training itself."""
    limit_gib: Annotated[float, Field(gt=0)] | None = None
    """disk: size of `dir` at which no more is taken in; null: none but the disk's."""
    mirror_gib: Annotated[float, Field(ge=0)] = 64.0
    """disk, where `dir` is in a store: how much of it is copied to this machine while it is read; 0: none."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """disk: number format of what is kept; auto: as the encoders compute, bf16 on CUDA, fp32 elsewhere."""
    sampling: Literal["mean", "draw"] = "mean"
    """Latents are the autoencoder's mean, or each epoch draws them anew from its mean and variance; with any
    cache or none."""
    caption_variants: Count = 8
    """text disk: in how many ways each caption is shuffled, shortened and lower-cased, in turn;
    0: differently each time, with T5 at hand for the captions that are shuffled."""

    @property
    def is_on_disk(self) -> bool:
        """Whether `dir` is used."""
        return "disk" in (self.latents, self.text)


class MemorySection(Section):
    """Time for memory."""

    checkpointed_blocks: Literal["auto", "all"] | Count = "auto"
    """Blocks that recompute their activations in the backward pass; auto takes as few as fit."""
    compile: bool = False
    """torch.compile each block."""


class ParallelSection(Section):
    """Where it runs and in what number format."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the frozen weights and the arithmetic; auto: bf16 on CUDA, fp32 elsewhere."""
    trained_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the trained weights; auto: fp32, but bf16 for the optimizer that rounds
    stochastically."""
    num_threads: Count = 0
    """CPU threads of torch; 0 leaves it to torch."""


class CheckpointSection(Section):
    """Which checkpoints stay."""

    keep_last: Literal["auto"] | Period = "auto"
    """The newest so many. auto: all of a LoRA, DoRA or LoKr; of full weights, as many as the disk has room
    for, with 2 GiB to spare."""
    keep_every: Period | None = None
    """And every one whose step is a multiple of this."""


class ValidationSection(Section):
    """Loss on rows that are never trained, at fixed noise levels with fixed noise."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of rows held out."""
    every: Period | None = None
    """Period in steps; null: as often as checkpoints are saved."""
    max_rows: Period = 256
    """At most so many rows are measured."""
    quantiles: list[Annotated[float, Field(gt=0, lt=1)]] = [0.1, 0.3, 0.5, 0.7, 0.9]
    """Quantiles of the training density at which the loss is measured."""


class PreviewSection(Section):
    """How previews are drawn, beyond FLOW's inference sections."""

    sampler: Literal["euler", "heun", "midpoint", "dpmpp_2m"] = "euler"
    """One algorithm, one function in flow_matching/samplers.py."""
    batch_caption: bool = True
    """Draw the caption of the current batch as one more prompt, as FLOW does."""
    weights: Literal["ema", "raw"] = "ema"
    """Which weights draw; without an EMA, the raw ones."""
    format: Literal["png", "webp"] = "png"
    """File format of the pictures."""
    max_batch: Period = 4
    """Pictures drawn at a time."""


class LimitsSection(Section):
    """When the run ends, and how many bad rows it takes. FLOW trains until it is stopped."""

    max_steps: Period | None = None
    """Stop after so many steps."""
    max_epochs: Period | None = None
    """Stop after so many epochs."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop after so many minutes of training."""
    skipped_percentage: Fraction = 0.05
    """Stop when more than this share of the rows cannot be used."""
    max_megapixels: Annotated[float, Field(gt=0)] = 100.0
    """Larger images are taken for decompression bombs."""
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#ffffff"
    """Colour behind transparent images."""

    @property
    def has_end(self) -> bool:
        """Whether the run ends by itself."""
        return any((self.max_steps, self.max_epochs, self.max_minutes))


class HubSection(Section):
    """Upload of checkpoints to the Hugging Face hub, in the background."""

    repo_id: str | None = None
    """FLOW's `hf_repo_id`; the token comes from HF_TOKEN. Null: no upload."""
    private: bool = True
    """Make the repository private when it does not exist yet."""


class RunConfig(Section):
    """Everything that decides a run."""

    training: TrainingSection = TrainingSection()
    inference: InferenceSection | None = None
    extra_inference_config: list[InferenceSection] = []
    """Further previews, each with its own prompts, period and settings."""
    dataloader: DataloaderSection = DataloaderSection()
    datasets: list[DatasetSection] = []
    """Further data sets; the first one is `dataloader`'s, where that names a JSONL."""
    batching: BatchingSection = BatchingSection()
    model: ModelSection = ModelSection()
    lora: LoraSection | None = None
    method: MethodSection = MethodSection()
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: Optimizer = Field(default={"kind": "adamw"}, validate_default=True)
    """The optimizer, by kind; its rate and decay are `training.lr` and `training.weight_decay`."""
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
    """Trackers that follow the run beside `events.jsonl`, by kind."""
    hub: HubSection = HubSection()

    @property
    def method_kind(self) -> Literal["full", "rotation", "keywords", "lora", "dora", "lokr"]:
        """The method, with `auto` read from FLOW's keys."""
        if self.method.kind != "auto":
            return self.method.kind
        if self.lora:
            return "lora"
        if self.training.trained_layer_keywords:
            return "keywords"
        return "rotation" if self.training.change_layer_every else "full"

    @property
    def resolutions(self) -> list[int]:
        """Every base resolution that is trained."""
        own = [side for section in self.datasets for side in section.base_resolution or ()]
        return [*self.dataloader.base_resolution, *own]

    @property
    def previews(self) -> list[InferenceSection]:
        """Every inference section, FLOW's main one first."""
        return [*([self.inference] if self.inference else []), *self.extra_inference_config]

    @model_validator(mode="before")
    @classmethod
    def _adapter_has_settings(cls, given: Any) -> Any:
        """`method.kind` lora, dora or lokr without a lora section takes its defaults."""
        if isinstance(given, dict) and given.get("lora") is None:
            method = given.get("method")
            if isinstance(method, dict) and method.get("kind") in ADAPTERS:
                return {**given, "lora": {}}
        return given

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> RunConfig:
        problems = [
            *self._method_contradictions(),
            *self._other_contradictions(),
            *self._data_contradictions(),
        ]
        if problems:
            text = "; ".join(str(problem) for problem in problems)
            raise PydanticCustomError("contradiction", "{text}", {"text": text, "problems": problems})
        return self

    def _method_contradictions(self) -> Iterator[Problem]:
        training = self.training
        if self.method_kind == "rotation":
            if training.change_layer_every is None:
                yield Problem("training.change_layer_every", "method rotation needs it: steps a turn.")
            if not (training.trained_single_blocks or 0) + (training.trained_double_blocks or 0):
                message = "method rotation needs this, training.trained_double_blocks, or both, above 0."
                yield Problem("training.trained_single_blocks", message)
        if self.method_kind == "keywords" and not training.trained_layer_keywords:
            message = "method keywords needs at least one, such as double_blocks.0."
            yield Problem("training.trained_layer_keywords", message)
        named = (
            ("training.trained_layer_keywords", training.trained_layer_keywords),
            ("method.always_trained", self.method.always_trained),
            ("lora.target_layers", self.lora.target_layers if self.lora else []),
        )
        for path, names in named:
            if any(APPROXIMATOR in name for name in names):
                yield Problem(path, f"{APPROXIMATOR} is never trained: doing so breaks Chroma. Leave it out.")

    def _other_contradictions(self) -> Iterator[Problem]:
        if self.cache.text == "disk" and self.objective.mask_mode == "flow_union":
            message = "objective.mask_mode flow_union makes texts depend on their batch: set it to off."
            yield Problem("cache.text", message)
        if self.lr_schedule.kind != "constant" and not self.limits.has_end:
            kind = self.lr_schedule.kind
            message = f"{kind} decays towards the end: set limits.max_steps, max_epochs or max_minutes."
            yield Problem("lr_schedule.kind", message)

    def _data_contradictions(self) -> Iterator[Problem]:
        data, sizes = self.dataloader, self.batching.sizes
        for i, own in enumerate(self.datasets):
            if own.repeats and own.weight:
                message = "a data set has repeats or a weight, not both: take one out."
                yield Problem(f"datasets.{i}.weight", message)
        others = ((f"datasets.{i}", own) for i, own in enumerate(self.datasets))
        for path, section in (("dataloader", data), *others):
            step = section.resolution_step or data.resolution_step
            smallest = min(section.base_resolution or data.base_resolution)
            if step > smallest:
                message = f"a grid of {step} pixels has no buckets for base_resolution {smallest}."
                yield Problem(f"{path}.resolution_step", message)
            if section.mask == "folder" and not section.mask_folder_path:
                yield Problem(f"{path}.mask_folder_path", "is needed: the folder with the masks.")
        if sizes and len(sizes) != len(data.base_resolution):
            count = len(data.base_resolution)
            message = f"has {len(sizes)} batch sizes for {count} base resolutions: give one for each."
            yield Problem("batching.sizes", message)
