"""The sections of FLOW's `training_config.json`: its spelling, its meaning.

Keys of FLOW that have no field here are in flow_keys.py, with what became of them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from flowloom.schema import Section

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Period = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=16, multiple_of=16)]
"""A side of a picture: 8 pixels to a latent, 2 latents to a token."""
NamePart = Annotated[str, Field(pattern=r"^[^\s,]+$")]
"""A piece of a parameter's name."""
Resolutions = Annotated[
    list[Pixels],
    Field(min_length=1),
    BeforeValidator(lambda given: given if isinstance(given, list | tuple) else [given]),
]
"""One resolution or several."""


Masks = Literal["none", "alpha", "folder"]
"""Where the mask of an image comes from."""


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
    trained_layer_keywords: list[NamePart] = []
    """Train only parameters whose name contains one of these; takes the place of rotation."""
    save_every: Period = 1000
    """Checkpoint period."""
    do_profiling: bool = False
    """Write a torch profiler trace of steps 2 to 4 into the run directory."""
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
    image_dim: tuple[Pixels, Pixels] = (512, 512)
    """Width and height in pixels, multiples of 16."""
    t5_max_length: Period = 512
    """Longest prompt in tokens."""


class DataloaderSection(Section):
    """FLOW's `dataloader`."""

    batch_size: Period = 1
    """Samples a loaded batch, over all ranks."""
    jsonl_metadata_path: str = ""
    """JSONL file with one sample a line, or a folder of images with captions beside them."""
    image_folder_path: str = "."
    """Folder that the file names of a JSONL are relative to."""
    base_resolution: Resolutions = [512]
    """Side of the square bucket; each sample draws one of them."""
    shuffle_tags: bool = True
    """Shuffle, and drop, the tags of tag-based rows; prose never."""
    tag_drop_percentage: Fraction = 0.0
    """Largest share of a row's tags to drop, 0 to 1."""
    uncond_percentage: Fraction = 0.0
    """Share of captions replaced by the empty one, 0 to 1."""
    resolution_step: Pixels = 64
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
    mask: Masks = "none"
    """What the loss counts: all, what the alpha channel of the image leaves, or what is white in an image of
    the same name in `mask_folder_path`."""
    mask_folder_path: str = ""
    """Folder with one mask for each image."""
    unmasked_weight: Fraction = 0.0
    """What a place outside of the mask counts, against 1 inside."""


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
    target_layers: Annotated[list[NamePart], Field(min_length=1)] = ["double_blocks", "single_blocks"]
    """Adapt every linear layer whose name contains one of these."""
    base_model_quant_level: Literal["full", "8bit", "4bit"] = "full"
    """How the frozen base is held: as loaded, float8, or nf4."""
