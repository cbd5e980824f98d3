"""The sections of FLOW's `training_config.json`, with its spelling and meaning.

FLOW's keys without a field here are in keys.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from flowloom.json_types import is_sequence
from flowloom.models.family import AUTO, families, family_for
from flowloom.schema import SIMPLE, Section, ui

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Period = Annotated[int, Field(ge=1)]
Steps = Annotated[Period, ui(unit="steps")]
Tokens = Annotated[Period, ui(unit="tokens")]
Pixels = Annotated[int, Field(ge=16, multiple_of=16), ui(unit="pixels")]
"""A side of an image: 8 pixels per latent, 2 latents per token."""
NamePart = Annotated[str, Field(pattern=r"^[^\s,]+$")]
"""Part of a parameter name."""
Resolutions = Annotated[
    list[Pixels],
    Field(min_length=1),
    BeforeValidator(lambda given: given if is_sequence(given) else [given]),
]
"""One resolution or several."""


def _known_family(name: str) -> str:
    if name not in (AUTO, *families()):
        raise ValueError(f"is one of {', '.join((AUTO, *families()))}")
    return name


FamilyName = Annotated[
    str,
    AfterValidator(_known_family),
    WithJsonSchema({"type": "string", "enum": [AUTO, *families()]}),
]
"""A model family, or `auto`."""
Masks = Literal["none", "alpha", "folder"]
"""Source of an image's loss mask."""


class TrainingSection(Section):
    """FLOW's `training`. Periods count steps (optimizer updates)."""

    master_seed: Annotated[int, SIMPLE] = 0
    """Seed of all random numbers of the run."""
    cache_minibatch: Period = 8
    """Samples per pass of the VAE and the text encoder."""
    train_minibatch: Annotated[Period, SIMPLE] = 1
    """Micro-batch: samples per forward and backward pass. It does not change the result of a step."""
    updates_per_large_batch: Period = 1
    """Optimizer updates per loaded batch."""
    lr: Annotated[float, Field(gt=0), SIMPLE] = 1e-5
    """Learning rate after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay; not applied to parameters named bias or norm."""
    warmup_steps: Annotated[Count, ui(simple=True, unit="steps")] = 0
    """Steps in which the learning rate rises from 0.05 to 1.0 times `lr`."""
    change_layer_every: Steps | None = None
    """Layer rotation: steps after which another random set of blocks is trained."""
    trained_single_blocks: Count | None = None
    """Layer rotation: single blocks trained at a time."""
    trained_double_blocks: Count | None = None
    """Layer rotation: double blocks trained at a time."""
    trained_layer_keywords: list[NamePart] = []
    """Train only parameters whose name contains one of these; replaces layer rotation."""
    save_every: Annotated[Steps, SIMPLE] = 1000
    """Checkpoint period in steps."""
    do_profiling: bool = False
    """Write a torch profiler trace of steps 2 to 4 into the run directory."""
    cfg_scale_strength: float | None = None
    """Train on the guided velocity: target = uncond + strength * (velocity - uncond)."""


class InferenceSection(Section):
    """FLOW's `inference`: previews during training."""

    inference_every: Annotated[Steps, SIMPLE] = 1000
    """Preview period in steps."""
    steps: Annotated[Period, SIMPLE] = 20
    """Sampler steps."""
    guidance: float = 0.0
    """Distilled guidance, an input of the network. Chroma was trained with 0."""
    cfg: Annotated[float, SIMPLE] = 1.0
    """Classifier-free guidance scale: uncond + cfg * (cond - uncond)."""
    prompts: Annotated[list[str], SIMPLE] = []
    """One preview is generated for each prompt."""
    first_n_steps_wo_cfg: int = 0
    """Number of first steps without classifier-free guidance; -1: no guidance."""
    image_dim: Annotated[tuple[Pixels, Pixels], SIMPLE] = (512, 512)
    """Width and height in pixels, multiples of 16."""
    t5_max_length: Tokens | None = None
    """Maximum prompt length in tokens; null: that of captions."""
    num_frames: Period | None = None
    """Frames of a clip, 4n + 1 for Wan; 1: an image; null: as many as the longest training clips."""
    fps: Annotated[float, Field(gt=0, le=1000), ui(unit="frames/s")] | None = None
    """Frame rate of a clip; null: that of the training clips."""
    reference_paths: list[str] = []
    """Models that edit: files of the reference images that every prompt is about."""


class DataloaderSection(Section):
    """FLOW's `dataloader`: the dataset and its loading."""

    batch_size: Annotated[Period, SIMPLE] = 1
    """Samples per loaded batch, over all ranks."""
    jsonl_metadata_path: Annotated[str, SIMPLE] = ""
    """JSONL file with one sample per line, or a folder of images with caption files."""
    image_folder_path: Annotated[str, SIMPLE] = "."
    """Folder that file names in the JSONL are relative to."""
    base_resolution: Annotated[Resolutions, SIMPLE] = [512]
    """Side of the square bucket in pixels; of several, each sample uses a random one."""
    shuffle_tags: Annotated[bool, SIMPLE] = True
    """Shuffle and drop tags of tag-based captions; prose is never changed."""
    tag_drop_percentage: Fraction = 0.0
    """Maximum fraction of a row's tags to drop, 0 to 1."""
    uncond_percentage: Annotated[Fraction, SIMPLE] = 0.0
    """Caption dropout: fraction of captions replaced by an empty one, 0 to 1."""
    resolution_step: Pixels = 64
    """Step between bucket sides in pixels."""
    num_workers: Count = 2
    """Threads that read and decode images."""
    prefetch_factor: Period = 2
    """Batches to prefetch."""
    ratio_cutoff: Annotated[float, Field(gt=1)] = 2.0
    """Skip rows with a larger aspect ratio, wide or tall."""
    thread_per_worker: Period = 1
    """Concurrent reads per worker; use more for data on a network."""
    offset: Count = 0
    """Batch of the first epoch to start at."""
    dummy_image: bool = False
    """Use black images instead of files, for profiling."""
    mask: Masks = "none"
    """Loss mask: none, the alpha channel of the image, or a mask image (white: trained) of the same name in
    `mask_folder_path`."""
    mask_folder_path: str = ""
    """Folder with a mask image for each image."""
    unmasked_weight: Fraction = 0.0
    """Loss weight outside the mask; inside it is 1."""
    reference_resolution: Pixels = 1024
    """Models that edit: side of a square with as many pixels as a reference image has after resizing; its
    shape is kept."""

    @property
    def reference_pixels(self) -> int:
        """Pixels of a reference image after resizing, about."""
        return self.reference_resolution**2


class ModelSection(Section):
    """FLOW's `model`: paths of the model files and folders, or URLs (s3://, gs://, az://, https://)."""

    family: FamilyName = "auto"
    """Family of the network at `path`; `auto` recognizes it by the file's header."""
    path: Annotated[str, SIMPLE] = ""
    """Network of any family: a file, or a diffusers folder, in which the other files are found too. Replaces
    `chroma_path`."""

    chroma_path: Annotated[str, SIMPLE] = ""
    """Chroma weights: .safetensors, .sft or .pth."""
    vae_path: Annotated[str, SIMPLE] = ""
    """FLUX autoencoder, ae.safetensors."""
    t5_path: Annotated[str, SIMPLE] = ""
    """T5 encoder: a folder or a file of safetensors."""
    t5_config_path: Annotated[str, SIMPLE] = ""
    """T5's config.json."""
    t5_tokenizer_path: Annotated[str, SIMPLE] = ""
    """Folder with T5's tokenizer (spiece.model or tokenizer.json)."""
    t5_to_8bit: bool = False
    """Store T5's linear weights in float8_e4m3."""
    t5_max_length: Tokens | None = None
    """Maximum caption length in tokens, whichever the text encoder; null: the family's, 512 for Chroma."""
    use_x0: bool = False
    """The network predicts the image instead of the velocity."""
    clip_path: str = ""
    """CLIP text encoder: a file or folder; FLUX.1 needs it."""
    clip_tokenizer_path: str = ""
    """Folder with CLIP's tokenizer (vocab.json and merges.txt)."""
    expert: Literal["auto", "high_noise", "low_noise"] = "auto"
    """Of a model with two networks (Wan 2.2 A14B) the one to train, at its own noise levels; auto: by the
    file's name, or the high-noise one of a diffusers folder."""
    text_encoder_path: str = ""
    """Language model that encodes captions (Qwen3, Gemma and others): a file or folder; which one depends on
    the family."""
    text_tokenizer_path: str = ""
    """Folder with the language model's tokenizer (tokenizer.json)."""

    @property
    def max_text_tokens(self) -> int:
        """Maximum length of a caption in tokens."""
        return self.t5_max_length or family_for(self).defaults.text_length

    @property
    def network_key(self) -> str:
        """The key that names the network."""
        return "path" if self.path else "chroma_path"

    @property
    def network_path(self) -> Path:
        """The file or folder of the network."""
        path = Path(self.path or self.chroma_path)
        second = path / "transformer_2"
        return second if self.expert == "low_noise" and second.is_dir() else path


class LoraSection(Section):
    """FLOW's `lora`: trains an adapter."""

    rank: Annotated[Period, SIMPLE] = 16
    """Rank of the adapter."""
    alpha: Annotated[float, Field(gt=0), SIMPLE] = 16
    """Alpha; the adapter is scaled by alpha / rank."""
    target_layers: Annotated[list[NamePart], Field(min_length=1)] = ["auto"]
    """Adapt every linear layer whose name contains one of these; auto: those of the family, such as
    double_blocks and single_blocks."""
    base_model_quant_level: Annotated[Literal["full", "8bit", "4bit"], SIMPLE] = "full"
    """Quantisation of the frozen base model: none (full), float8 or nf4."""
