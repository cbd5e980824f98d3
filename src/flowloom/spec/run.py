"""What a run is: one schema for flags, JSON files, OpenAPI, forms and docs.

FLOW's sections and keys keep FLOW's spelling and meaning (docs: FLOW's README and dataclasses);
the sections after `lora` are ours, and their defaults give FLOW's behaviour with its faults mended.
Imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from flowloom.parts import loggers as logger_parts
from flowloom.parts import optimizers as optimizer_parts
from flowloom.parts.base import Section, union_of
from flowloom.parts.loggers.base import LoggerSpec
from flowloom.parts.optimizers.base import OptimizerSpec

if TYPE_CHECKING:
    Optimizer = OptimizerSpec
    Logger = LoggerSpec
else:
    Optimizer = union_of(optimizer_parts, OptimizerSpec)
    Logger = union_of(logger_parts, LoggerSpec)

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Period = Annotated[int, Field(ge=1)]


class TrainingSection(Section):
    """FLOW's `training`. Periods count steps (optimizer updates)."""

    master_seed: int = 0
    """Seed of everything random in the run."""
    cache_minibatch: Period = 8
    """Samples a pass of the VAE and the text encoder."""
    train_minibatch: Period = 1
    """Samples a forward and backward pass; how a step is cut does not change its result."""
    updates_per_large_batch: Period = 1
    """Optimizer updates made from each loaded batch."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Learning rate after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay; 0 for parameters named bias or norm."""
    warmup_steps: Count = 0
    """Steps in which the learning rate climbs from 0.05 to 1.0 of `lr`."""
    change_layer_every: Period | None = None
    """Layer rotation: train another random set of blocks every so many steps."""
    trained_single_blocks: Count | None = None
    """Layer rotation: single blocks trained at a time."""
    trained_double_blocks: Count | None = None
    """Layer rotation: double blocks trained at a time."""
    trained_layer_keywords: list[str] = []
    """Train only parameters whose name contains one of these; takes the place of rotation."""
    save_every: Period = 1000
    """Checkpoint period."""
    aim_steps: Count | None = None
    """First global step shown by the trackers."""
    do_profiling: bool = False
    """Write a torch profiler trace of the first three steps into the run directory."""
    cfg_scale_strength: float | None = None
    """Train towards the guided velocity: target = uncond + strength * (velocity - uncond)."""


class InferenceSection(Section):
    """FLOW's `inference`: what to draw during training, how often, and how."""

    inference_every: Period = 1000
    """Preview period in steps."""
    steps: Period = 20
    """Sampler steps."""
    guidance: float = 0.0
    """Distilled guidance fed to the network; Chroma is trained with 0."""
    cfg: float = 1.0
    """Classifier-free guidance scale: uncond + cfg * (cond - uncond)."""
    prompts: list[str] = []
    """One picture each."""
    first_n_steps_wo_cfg: int = 0
    """Steps without guidance at the start; -1 turns guidance off."""
    image_dim: tuple[Period, Period] = (512, 512)
    """Width and height in pixels."""
    t5_max_length: Period = 512
    """Longest prompt in tokens."""


class DataloaderSection(Section):
    """FLOW's `dataloader`."""

    batch_size: Period = 1
    """Samples a loaded batch, over all ranks."""
    jsonl_metadata_path: str = ""
    """JSONL file with one sample a line."""
    image_folder_path: str = "."
    """Folder that the file names are relative to."""
    base_resolution: Annotated[list[Annotated[int, Field(ge=16)]], Field(min_length=1)] = [512]
    """Side of the square bucket; each sample draws one of them."""
    shuffle_tags: bool = True
    """Shuffle, and drop, the tags of tag-based rows; prose never."""
    tag_drop_percentage: Fraction = 0.0
    """Largest share of a row's tags to drop, 0 to 1."""
    uncond_percentage: Fraction = 0.0
    """Share of captions replaced by the empty one, 0 to 1."""
    resolution_step: Annotated[int, Field(ge=16, multiple_of=16)] = 64
    """Grid of bucket sides in pixels."""
    num_workers: Count = 2
    """Threads that read and decode images."""
    prefetch_factor: Period = 2
    """Batches to read ahead."""
    ratio_cutoff: Annotated[float, Field(gt=1)] = 2.0
    """Rows wider or taller than this aspect ratio are left out."""
    thread_per_worker: Period = 1
    """Concurrent reads for each worker: what waits for a network wants many."""
    offset: Count = 0
    """First batch of the first epoch to train."""
    dummy_image: bool = False
    """Use black images instead of files, for profiling."""


class ModelSection(Section):
    """FLOW's `model`: where the weights lie."""

    chroma_path: str = ""
    """Chroma's weights: .safetensors, .sft or .pth."""
    vae_path: str = ""
    """FLUX autoencoder, ae.safetensors."""
    t5_path: str = ""
    """T5 encoder: a folder or file(s) of safetensors."""
    t5_config_path: str = ""
    """T5's config.json."""
    t5_tokenizer_path: str = ""
    """Folder with T5's tokenizer (spiece.model or tokenizer.json)."""
    t5_to_8bit: bool = False
    """Hold T5's linear weights in float8_e4m3."""
    t5_max_length: Period = 512
    """Longest caption in tokens."""
    use_x0: bool = False
    """The network predicts the image instead of the velocity."""


class LoraSection(Section):
    """FLOW's `lora`; a file that has it trains an adapter."""

    rank: Period = 16
    """Rank of the adapter."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """Strength is alpha / rank."""
    target_layers: list[str] = ["double_blocks", "single_blocks"]
    """Adapt every linear layer whose name contains one of these."""
    base_model_quant_level: Literal["full", "8bit", "4bit"] = "full"
    """How the frozen base is held: as loaded, float8, or nf4."""


class MethodSection(Section):
    """What is trained."""

    kind: Literal["auto", "full", "rotation", "keywords", "lora", "dora", "lokr"] = "auto"
    """`auto` reads it from FLOW's keys: a lora section, keywords, rotation, or else full."""
    rotation_states: Literal["keep", "reset"] = "keep"
    """Rotation: keep each block's optimizer state on the CPU, or start afresh as FLOW does."""
    always_trained: list[str] = ["txt_in", "img_in", "final_layer"]
    """Rotation: parts trained beside the drawn blocks; without the first two, the backward pass stops at the lowest trained block."""
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
    FlowDensity | UniformDensity | LogitNormalDensity | ShiftedDensity, Field(discriminator="kind")
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
    """The learning rate after FLOW's warm-up."""

    kind: Literal["constant", "cosine", "wsd"] = "constant"
    """wsd: warm-up, stable, then a linear decay over the last part."""
    decay_share: Fraction = 0.2
    """wsd: the last share of the run in which the rate decays."""
    min_ratio: Fraction = 0.0
    """Where the decay ends, as a share of `lr`."""


class EmaSection(Section):
    """An exponential moving average of the trained weights, in float32."""

    decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay a step; null turns it off. Early on min(decay, (1 + step) / (10 + step)) is used."""
    device: Literal["same", "cpu"] = "same"
    """Where the average lies."""


class CacheSection(Section):
    """What is kept instead of encoded again."""

    latents: Literal["off", "memory"] = "off"
    """Latents of images already seen."""
    text: Literal["off", "memory"] = "off"
    """Encoder states of captions already seen."""
    limit_mib: Period = 2048
    """Memory for both together; the longest unused goes first."""


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
    """Number format of the trained weights; auto: fp32, but bf16 for the stochastically rounding optimizer."""
    num_threads: Count = 0
    """CPU threads of torch; 0 leaves it to torch."""


class CheckpointSection(Section):
    """Which checkpoints stay."""

    keep_last: Period = 2
    """The newest so many."""
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
    """One algorithm, one function in flow/samplers.py."""
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
    dataloader: DataloaderSection = DataloaderSection()
    model: ModelSection = ModelSection()
    lora: LoraSection | None = None
    method: MethodSection = MethodSection()
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: Optimizer = Field(default={"kind": "adamw"}, validate_default=True)
    lr_schedule: LrScheduleSection = LrScheduleSection()
    ema: EmaSection = EmaSection()
    cache: CacheSection = CacheSection()
    memory: MemorySection = MemorySection()
    parallel: ParallelSection = ParallelSection()
    checkpoint: CheckpointSection = CheckpointSection()
    validation: ValidationSection = ValidationSection()
    preview: PreviewSection = PreviewSection()
    limits: LimitsSection = LimitsSection()
    loggers: list[Logger] = []
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

    @model_validator(mode="after")
    def _rotation_is_whole(self) -> RunConfig:
        training = self.training
        if self.method_kind == "rotation" and (
            training.change_layer_every is None
            or not (training.trained_single_blocks or 0) + (training.trained_double_blocks or 0)
        ):
            raise ValueError(
                "method rotation needs training.change_layer_every and at least one of "
                "training.trained_single_blocks, training.trained_double_blocks above 0."
            )
        return self

    @model_validator(mode="after")
    def _schedule_knows_its_end(self) -> RunConfig:
        if self.lr_schedule.kind != "constant" and self.limits.max_steps is None:
            raise ValueError(
                f"lr_schedule.kind {self.lr_schedule.kind!r} decays towards the last step: "
                "set limits.max_steps, or use 'constant'."
            )
        return self
