"""The configuration of a run of Kohya's sd-scripts: its own names of things, typed, in sections.

What is null is left to the family's right value (families.py), or to sd-scripts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from flowloom.schema import Section

Family = Literal["sd15", "sdxl", "sd3", "flux", "lumina", "chroma"]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(max_length=4096)]
Side = Annotated[int, Field(ge=64)]
Warmup = Annotated[float, Field(ge=0, lt=1)]


def as_resolution(value: Any) -> Any:
    """`512`, `"512"`, `"512,768"` or `[512, 768]` as one side of a square, or as width and height."""
    if isinstance(value, str):
        words = value.split(",")
        value = [int(word) for word in words] if all(word.strip().isdecimal() for word in words) else value
    is_square = isinstance(value, list | tuple) and len(value) in (1, 2) and len(set(map(str, value))) == 1
    return value[0] if is_square else value


Resolution = Annotated[
    Side | Annotated[list[Side], Field(min_length=2, max_length=2)], BeforeValidator(as_resolution)
]


class ModelFiles(Section):
    """The files of the base model."""

    pretrained_model_name_or_path: Text = ""
    """The network; of SD 1.5 and SDXL the whole checkpoint, or a diffusers folder."""
    vae: Text | None = None
    """SD 1.5, SDXL: another VAE than the checkpoint's."""
    ae: Text | None = None
    """FLUX, Chroma, Lumina: the VAE, ae.safetensors."""
    clip_l: Text | None = None
    """FLUX, SD3: CLIP-L."""
    clip_g: Text | None = None
    """SD3: CLIP-G."""
    t5xxl: Text | None = None
    """FLUX, SD3, Chroma: T5-XXL."""
    gemma2: Text | None = None
    """Lumina: Gemma 2."""
    tokenizer_cache_dir: Text | None = None
    """A folder with the tokenizers, for machines without the hub."""


class ImageFolder(Section):
    """Pictures with captions beside them, and how often they come."""

    image_dir: Text = ""
    """The folder."""
    num_repeats: Positive = 1
    """Times that each picture comes an epoch."""
    class_tokens: Text | None = None
    """The caption of pictures that have none."""
    metadata_file: Text | None = None
    """Captions of full fine-tunes, in place of files beside the pictures."""
    is_reg: bool = False
    """Regularisation pictures."""
    caption_extension: Annotated[str, Field(pattern=r"^\.[^/\\\s]{1,31}$")] = ".txt"
    """Of the files with captions, such as .txt or .caption."""
    shuffle_caption: bool = False
    """Tags in another order each time."""
    keep_tokens: Count = 0
    """Tags at the beginning that stay there."""
    keep_tokens_separator: Text | None = None
    """A mark in the caption: what stands before it is neither shuffled nor left out."""
    caption_prefix: Text | None = None
    """Put before every caption."""
    caption_suffix: Text | None = None
    """Put after every caption."""
    enable_wildcard: bool = False
    """Select one of {a|b} and one line of the caption at random."""
    flip_aug: bool = False
    """Mirrored pictures as well."""
    caption_dropout_rate: Share = 0.0
    """Share of captions that are left out."""
    caption_tag_dropout_rate: Share = 0.0
    """Share of tags that are left out."""
    alpha_mask: bool = False
    """The alpha channel is a mask of the loss."""
    conditioning_data_dir: Text | None = None
    """Masks of the loss, by the pictures' names."""


class Dataset(Section):
    """Folders that are trained at one resolution."""

    resolution: Resolution = 1024
    """Pixels: the side of a square of the same area, or width and height as 832,1216."""
    batch_size: Positive = 1
    """Pictures a step on each device."""
    enable_bucket: bool = True
    """Keep aspect ratios."""
    min_bucket_reso: Positive = 256
    """Pixels of the shorter side at least."""
    max_bucket_reso: Positive = 2048
    """Pixels of the longer side at most."""
    bucket_reso_steps: Positive = 64
    """Sides are multiples of it; FLUX and Chroma need 32 or 64."""
    bucket_no_upscale: bool = True
    """Small pictures stay small."""
    validation_split: Share = 0.0
    """Share of the pictures that is held out."""
    subsets: list[ImageFolder] = []
    """The folders."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that `resolution` states."""
        if isinstance(self.resolution, int):
            return self.resolution, self.resolution
        width, height = self.resolution
        return width, height


class Network(Section):
    """The adapter of a LoRA run."""

    network_module: Text | None = None
    """null: the family's own, such as networks.lora_flux."""
    network_dim: Positive = 16
    """Rank."""
    network_alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapter's strength is alpha / rank."""
    network_dropout: Share | None = None
    """Share of the adapter's neurons that is left out each step."""
    network_train_unet_only: bool | None = None
    """Only the image network, no text encoder."""
    network_weights: Text | None = None
    """An adapter to begin with."""
    network_args: list[Text] = []
    """NAME=VALUE for the module: conv_dim, conv_alpha, loraplus_lr_ratio, train_blocks ..."""


class Training(Section):
    """Steps, rate and optimizer."""

    max_train_steps: Positive | None = 2000
    """Updates; null: max_train_epochs decides."""
    max_train_epochs: Positive | None = None
    """Epochs; wins over steps."""
    learning_rate: Rate = 1e-4
    """Of the optimizer."""
    unet_lr: Rate | None = None
    """Of the image network; null: learning_rate."""
    text_encoder_lr: Rate | list[Rate] | None = None
    """Of the text encoder, or a list with one for each of them; null: learning_rate."""
    optimizer_type: Text = "AdamW8bit"
    """AdamW, AdamW8bit, Lion, Prodigy, Adafactor, or the path of a class."""
    optimizer_args: list[Text] = []
    """NAME=VALUE for the optimizer."""
    lr_scheduler: Text = "constant_with_warmup"
    """constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial ..."""
    lr_warmup_steps: Count | Warmup = 50
    """Steps until the full rate; below 1 it is a share of all steps."""
    max_grad_norm: Rate = 1.0
    """Larger gradients are scaled down to it; 0: never."""
    gradient_accumulation_steps: Positive = 1
    """Batches an update."""
    gradient_checkpointing: bool = True
    """Recompute activations: less memory, more time."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "bf16"
    """Number format of the arithmetic."""
    full_bf16: bool | None = None
    """Weights and gradients in bf16 as well."""
    seed: Count | None = 42
    """Of every random number; null: another one each time."""
    loss_type: Literal["l1", "l2", "huber", "smooth_l1"] = "l2"
    """How a prediction is compared with the truth."""
    min_snr_gamma: Rate | None = None
    """SD 1.5, SDXL: weight of noise levels."""
    noise_offset: Rate | None = None
    """SD 1.5, SDXL: brightness of the noise."""
    clip_skip: Positive | None = None
    """SD 1.5: layers of CLIP that are left out at the end."""
    max_token_length: Literal[75, 150, 225] | None = None
    """SD 1.5, SDXL: tokens of a caption; null: 225 for SD 1.5, 75 for SDXL."""
    no_half_vae: bool | None = None
    """SDXL: its VAE in fp32."""
    max_data_loader_n_workers: Count = 2
    """Processes that read pictures."""
    attention: Literal["sdpa", "xformers", "none"] = "sdpa"
    """The kernel of attention; none: the script's own."""


class FlowMatching(Section):
    """FLUX, Chroma, SD3, Lumina: the path from picture to noise."""

    timestep_sampling: (
        Literal["sigma", "uniform", "sigmoid", "shift", "flux_shift", "nextdit_shift"] | None
    ) = None
    """How noise levels are drawn."""
    sigmoid_scale: Rate | None = None
    """Of sigmoid."""
    discrete_flow_shift: Rate | None = None
    """Of shift."""
    model_prediction_type: Literal["raw", "additive", "sigma_scaled"] | None = None
    """What the network's output is; raw for Chroma."""
    guidance_scale: Rate | None = None
    """Of the distilled guidance: 0 for Chroma, 1 for FLUX."""
    apply_t5_attn_mask: bool | None = None
    """Hide T5's padding; Chroma needs it."""


class Memory(Section):
    """Time for memory."""

    fp8_base: bool = False
    """The frozen network in 8 bits."""
    blocks_to_swap: Count | None = None
    """Blocks that wait in main memory."""
    cache_latents: bool = True
    """Encode every picture once."""
    cache_latents_to_disk: bool = True
    """And keep that beside the pictures."""
    cache_text_encoder_outputs: bool | None = None
    """Encode every caption once: no dropout, no shuffling."""
    cache_text_encoder_outputs_to_disk: bool | None = None
    """And keep that beside the pictures."""
    vae_batch_size: Positive = 1
    """Pictures that are encoded at once."""


class Saving(Section):
    """What is kept."""

    output_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "last"
    """Of the files."""
    save_every_n_steps: Positive | None = 250
    """Steps between checkpoints."""
    save_last_n_steps: Positive | None = None
    """Checkpoints older than so many steps are deleted; null: all stay, as in sd-scripts."""
    save_last_n_steps_state: Positive | None = 1000
    """The same of the states that only a resume needs; null: as save_last_n_steps."""
    save_every_n_epochs: Positive | None = None
    """Epochs between checkpoints, beside those by steps."""
    save_last_n_epochs: Positive | None = None
    """Checkpoints of older epochs than so many go."""
    save_precision: Literal["float", "fp16", "bf16"] | None = "bf16"
    """Number format of the files; null: that of the trained weights."""
    save_state: bool = True
    """With what a resume needs."""


class Hub(Section):
    """Upload to the Hugging Face hub by sd-scripts itself; its token is HF_TOKEN of the secrets."""

    huggingface_repo_id: Annotated[str, Field(max_length=96, pattern=r"^([\w.-]+/)?[\w.-]+$")] | None = None
    """OWNER/NAME, made where it is not there; null: no upload."""
    huggingface_repo_type: Literal["model", "dataset"] = "model"
    """What the repository is for."""
    huggingface_path_in_repo: Annotated[str, Field(max_length=256, pattern=r"^[\w. /-]*$")] = ""
    """A folder in it; empty: none."""
    huggingface_repo_visibility: Literal["private", "public"] = "private"
    """Of a repository that is made."""
    async_upload: bool = True
    """Training goes on meanwhile; the last checkpoint is waited for."""
    save_state_to_huggingface: bool = False
    """What a resume needs as well: several times the weights."""


class Sampling(Section):
    """Pictures during training."""

    prompts: list[Text] = []
    """One image each. Options of sd-scripts in a line (--n, --w, --h, --d ...) win over the keys below."""
    negative: Text = ""
    """What not to show."""
    width: Annotated[int, Field(ge=64)] = 1024
    """Pixels."""
    height: Annotated[int, Field(ge=64)] = 1024
    """Pixels."""
    steps: Positive = 28
    """Of the sampler."""
    scale: Rate | None = None
    """Of classifier-free guidance (--l); 4 for Chroma."""
    guidance: Rate | None = None
    """Distilled (--g): 0 for Chroma."""
    seed: Count | None = 42
    """Of the first noise; null: another one each time."""
    sample_every_n_steps: Positive | None = 250
    """Steps between pictures; null: only by epochs, or never."""
    sample_every_n_epochs: Positive | None = None
    """Epochs between pictures; wins over steps."""
    sample_at_first: bool = False
    """Before the first step as well."""


class KohyaConfig(Section):
    """A run of sd-scripts."""

    checkout: Text = ""
    """The sd-scripts to use, one of those named on this machine; empty: the one named last."""
    family: Family = "chroma"
    """Of the base model."""
    method: Literal["lora", "full"] = "lora"
    """An adapter, or the network itself."""
    model: ModelFiles = ModelFiles()
    datasets: list[Dataset] = []
    network: Network = Network()
    training: Training = Training()
    flow: FlowMatching = FlowMatching()
    memory: Memory = Memory()
    saving: Saving = Saving()
    hub: Hub = Hub()
    sampling: Sampling = Sampling()
    raw_arguments: Text = ""
    """Further words for the script, such as `--fp8_base_unet`: they win over everything above."""
