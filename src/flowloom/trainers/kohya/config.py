"""The configuration of a run of Kohya's sd-scripts: sd-scripts' names, typed, in sections.

A null value means the family's default (families.py) or sd-scripts'.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from flowloom.json_types import is_sequence
from flowloom.run.directory import RUN_NAME
from flowloom.schema import SIMPLE, Section, ui
from flowloom.storage.base import StorageSection

Family = Literal["sd15", "sdxl", "sd3", "flux", "lumina", "chroma"]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Steps = Annotated[Positive, ui(unit="steps")]
Epochs = Annotated[Positive, ui(unit="epochs")]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(max_length=4096)]
Side = Annotated[int, Field(ge=64), ui(unit="pixels")]
Warmup = Annotated[float, Field(ge=0, lt=1)]


def as_resolution(value: Any) -> Any:
    """`512`, `"512"`, `"512,768"` or `[512, 768]` as one side of a square, or as width and height."""
    if isinstance(value, str):
        parts = value.split(",")
        value = [int(part) for part in parts] if all(part.strip().isdecimal() for part in parts) else value
    is_square = is_sequence(value) and len(value) in (1, 2) and len(set(map(str, value))) == 1
    return value[0] if is_square else value


Resolution = Annotated[
    Side | Annotated[list[Side], Field(min_length=2, max_length=2)], BeforeValidator(as_resolution)
]


class ModelFiles(Section):
    """The files of the base model: paths, or URLs in a bucket."""

    pretrained_model_name_or_path: Annotated[Text, SIMPLE] = ""
    """The network; of SD 1.5 and SDXL the whole checkpoint, or a diffusers folder."""
    vae: Annotated[Text | None, SIMPLE] = None
    """SD 1.5, SDXL: another VAE than the checkpoint's."""
    ae: Annotated[Text | None, SIMPLE] = None
    """FLUX, Chroma, Lumina: the VAE, ae.safetensors."""
    clip_l: Annotated[Text | None, SIMPLE] = None
    """FLUX, SD3: CLIP-L."""
    clip_g: Text | None = None
    """SD3: CLIP-G."""
    t5xxl: Annotated[Text | None, SIMPLE] = None
    """FLUX, SD3, Chroma: T5-XXL."""
    gemma2: Text | None = None
    """Lumina: Gemma 2."""
    tokenizer_cache_dir: Text | None = None
    """Folder with the tokenizers, for machines without access to the hub."""


class ImageFolder(Section):
    """An image folder with caption files, and its repeats."""

    image_dir: Text = ""
    """Path of the folder, or its URL in a bucket: it is copied before the run starts."""
    num_repeats: Positive = 1
    """Repeats of each image per epoch."""
    class_tokens: Text | None = None
    """Caption of images without one."""
    metadata_file: Text | None = None
    """File with the captions of a full fine-tune, instead of caption files."""
    is_reg: bool = False
    """Regularisation images."""
    caption_extension: Annotated[str, Field(pattern=r"^\.[^/\\\s]{1,31}$")] = ".txt"
    """Suffix of caption files, such as .txt or .caption."""
    shuffle_caption: bool = False
    """Shuffle the tags each time."""
    keep_tokens: Annotated[Count, ui(unit="tags")] = 0
    """Number of first tags that keep their place."""
    keep_tokens_separator: Text | None = None
    """Separator in the caption; tags before it are neither shuffled nor dropped."""
    caption_prefix: Text | None = None
    """Text before every caption."""
    caption_suffix: Text | None = None
    """Text after every caption."""
    enable_wildcard: bool = False
    """Select one of {a|b} and one line of the caption at random."""
    flip_aug: bool = False
    """Also train on mirrored images."""
    caption_dropout_rate: Share = 0.0
    """Caption dropout: fraction of captions left out."""
    caption_tag_dropout_rate: Share = 0.0
    """Tag dropout: fraction of tags left out."""
    alpha_mask: bool = False
    """Use the alpha channel as loss mask."""
    conditioning_data_dir: Text | None = None
    """Folder with loss masks, named like the images."""


class Dataset(Section):
    """Folders that are trained at the same resolution."""

    resolution: Resolution = 1024
    """Side in pixels of a square of the same area, or width and height as 832,1216."""
    batch_size: Positive = 1
    """Images per step and device."""
    enable_bucket: bool = True
    """Use buckets, which keep aspect ratios."""
    min_bucket_reso: Annotated[Positive, ui(unit="pixels")] = 256
    """Minimum side of a bucket in pixels."""
    max_bucket_reso: Annotated[Positive, ui(unit="pixels")] = 2048
    """Maximum side of a bucket in pixels."""
    bucket_reso_steps: Annotated[Positive, ui(unit="pixels")] = 64
    """Step between bucket sides in pixels; FLUX and Chroma need 32 or 64."""
    bucket_no_upscale: bool = True
    """Do not enlarge small images."""
    validation_split: Share = 0.0
    """Fraction of images held out for validation."""
    subsets: list[ImageFolder] = []
    """The folders."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of `resolution`."""
        if isinstance(self.resolution, int):
            return self.resolution, self.resolution
        width, height = self.resolution
        return width, height


class Network(Section):
    """The adapter of a LoRA run."""

    network_module: Text | None = None
    """Module of the adapter; null: that of the family, such as networks.lora_flux."""
    network_dim: Annotated[Positive, SIMPLE] = 16
    """Rank of the adapter."""
    network_alpha: Annotated[float, Field(gt=0), SIMPLE] = 16.0
    """Alpha; the adapter is scaled by alpha / rank."""
    network_dropout: Share | None = None
    """Fraction of the adapter's neurons dropped in each step."""
    network_train_unet_only: bool | None = None
    """Train only the image network, no text encoder."""
    network_weights: Text | None = None
    """Adapter to start from."""
    network_args: list[Text] = []
    """NAME=VALUE arguments of the module: conv_dim, conv_alpha, loraplus_lr_ratio, train_blocks ..."""


class Training(Section):
    """Steps, learning rate and optimizer."""

    max_train_steps: Annotated[Steps | None, SIMPLE] = 2000
    """Number of steps; null: max_train_epochs."""
    max_train_epochs: Epochs | None = None
    """Number of epochs; overrides max_train_steps."""
    learning_rate: Annotated[Rate, SIMPLE] = 1e-4
    """Learning rate."""
    unet_lr: Rate | None = None
    """Learning rate of the image network; null: learning_rate."""
    text_encoder_lr: Rate | list[Rate] | None = None
    """Learning rate of the text encoder, or a list with one for each; null: learning_rate."""
    optimizer_type: Annotated[Text, SIMPLE] = "AdamW8bit"
    """AdamW, AdamW8bit, Lion, Prodigy, Adafactor, or the dotted name of a class."""
    optimizer_args: list[Text] = []
    """NAME=VALUE arguments of the optimizer."""
    lr_scheduler: Annotated[Text, SIMPLE] = "constant_with_warmup"
    """constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial ..."""
    lr_warmup_steps: Annotated[Count | Warmup, ui(unit="steps")] = 50
    """Warm-up steps; a value below 1 is a fraction of all steps."""
    max_grad_norm: Rate = 1.0
    """Maximum gradient norm; 0: no clipping."""
    gradient_accumulation_steps: Positive = 1
    """Batches per optimizer step."""
    gradient_checkpointing: bool = True
    """Recompute activations: uses less memory and more time."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "bf16"
    """Data type of the computation."""
    full_bf16: bool | None = None
    """Also store weights and gradients in bf16."""
    seed: Annotated[Count | None, SIMPLE] = 42
    """Seed; null: random."""
    loss_type: Literal["l1", "l2", "huber", "smooth_l1"] = "l2"
    """Loss function."""
    min_snr_gamma: Rate | None = None
    """SD 1.5, SDXL: gamma of the min-SNR weighting."""
    noise_offset: Rate | None = None
    """SD 1.5, SDXL: offset noise."""
    clip_skip: Positive | None = None
    """SD 1.5: number of last CLIP layers to skip."""
    max_token_length: Annotated[Literal[75, 150, 225] | None, ui(unit="tokens")] = None
    """SD 1.5, SDXL: maximum caption length in tokens; null: 225 for SD 1.5, 75 for SDXL."""
    no_half_vae: bool | None = None
    """SDXL: run the VAE in fp32."""
    max_data_loader_n_workers: Count = 2
    """Processes that load images."""
    attention: Literal["sdpa", "xformers", "none"] = "sdpa"
    """Attention kernel; none: the script's default."""


class FlowMatching(Section):
    """Flow-matching settings of FLUX, Chroma, SD3 and Lumina."""

    timestep_sampling: (
        Literal["sigma", "uniform", "sigmoid", "shift", "flux_shift", "nextdit_shift"] | None
    ) = None
    """Distribution of the noise levels."""
    sigmoid_scale: Rate | None = None
    """Scale of sigmoid."""
    discrete_flow_shift: Rate | None = None
    """Shift of shift."""
    model_prediction_type: Literal["raw", "additive", "sigma_scaled"] | None = None
    """Parametrisation of the network's output; raw for Chroma."""
    guidance_scale: Rate | None = None
    """Distilled guidance: 0 for Chroma, 1 for FLUX."""
    apply_t5_attn_mask: bool | None = None
    """Mask T5's padding; Chroma needs it."""


class Memory(Section):
    """Trade speed for memory."""

    fp8_base: Annotated[bool, SIMPLE] = False
    """Load the frozen network in 8 bits."""
    blocks_to_swap: Annotated[Count | None, SIMPLE] = None
    """Number of blocks swapped to main memory."""
    cache_latents: bool = True
    """Cache latents: encode every image once."""
    cache_latents_to_disk: bool = True
    """Store the latents next to the images."""
    cache_text_encoder_outputs: bool | None = None
    """Cache text encodings: no caption dropout and no shuffling."""
    cache_text_encoder_outputs_to_disk: bool | None = None
    """Store the text encodings next to the images."""
    vae_batch_size: Positive = 1
    """Images encoded at once."""


class Saving(Section):
    """Checkpoints."""

    output_name: Annotated[str, Field(pattern=f"^{RUN_NAME.pattern}$"), SIMPLE] = "last"
    """Name of the files."""
    save_every_n_steps: Annotated[Steps | None, SIMPLE] = 250
    """Steps between checkpoints."""
    save_last_n_steps: Annotated[Steps | None, SIMPLE] = None
    """Delete checkpoints older than this number of steps; null: keep all, like sd-scripts."""
    save_last_n_steps_state: Steps | None = 1000
    """The same for states, which only a resume needs; null: save_last_n_steps."""
    save_every_n_epochs: Epochs | None = None
    """Epochs between checkpoints, in addition to those by steps."""
    save_last_n_epochs: Epochs | None = None
    """Delete checkpoints older than this number of epochs."""
    save_precision: Literal["float", "fp16", "bf16"] | None = "bf16"
    """Data type of the files; null: that of the trained weights."""
    save_state: bool = True
    """Also save the state that a resume needs."""


class Hub(Section):
    """Upload to the Hugging Face hub by sd-scripts; the token is HF_TOKEN of the secrets."""

    huggingface_repo_id: Annotated[str, Field(max_length=96, pattern=r"^([\w.-]+/)?[\w.-]+$")] | None = None
    """Repository, OWNER/NAME, created if needed; null: no upload."""
    huggingface_repo_type: Literal["model", "dataset"] = "model"
    """Type of the repository."""
    huggingface_path_in_repo: Annotated[str, Field(max_length=256, pattern=r"^[\w. /-]*$")] = ""
    """Folder in the repository; empty: its root."""
    huggingface_repo_visibility: Literal["private", "public"] = "private"
    """Visibility of a new repository."""
    async_upload: bool = True
    """Continue training during uploads, except for the last checkpoint."""
    save_state_to_huggingface: bool = False
    """Also upload the state that a resume needs: several times the size of the weights."""


class Sampling(Section):
    """Previews during training."""

    prompts: Annotated[list[Text], SIMPLE] = []
    """One preview each. Options of sd-scripts in a prompt (--n, --w, --h ...) override the keys below."""
    negative: Text = ""
    """Negative prompt."""
    width: Annotated[Side, SIMPLE] = 1024
    """Width in pixels."""
    height: Annotated[Side, SIMPLE] = 1024
    """Height in pixels."""
    steps: Positive = 28
    """Sampler steps."""
    scale: Rate | None = None
    """Classifier-free guidance scale (--l); 4 for Chroma."""
    guidance: Rate | None = None
    """Distilled guidance (--g): 0 for Chroma."""
    seed: Count | None = 42
    """Seed of the previews; null: random."""
    sample_every_n_steps: Annotated[Steps | None, SIMPLE] = 250
    """Steps between previews; null: only by epochs, or never."""
    sample_every_n_epochs: Epochs | None = None
    """Epochs between previews; overrides steps."""
    sample_at_first: bool = False
    """Also generate previews before the first step."""


class KohyaConfig(Section):
    """A run of sd-scripts."""

    checkout: Annotated[Text, ui(group="General")] = ""
    """Checkout of sd-scripts, one of those registered on this machine; empty: the last registered."""
    family: Annotated[Family, ui(simple=True, group="General")] = "chroma"
    """Family of the base model."""
    method: Annotated[Literal["lora", "full"], ui(simple=True, group="General")] = "lora"
    """Train an adapter or the whole network."""
    model: ModelFiles = ModelFiles()
    datasets: Annotated[list[Dataset], SIMPLE] = []
    network: Network = Network()
    training: Training = Training()
    flow: FlowMatching = FlowMatching()
    memory: Memory = Memory()
    saving: Saving = Saving()
    storage: StorageSection = StorageSection()
    """Access to buckets with models or images (`s3://`), which are copied before the run starts."""
    hub: Hub = Hub()
    sampling: Sampling = Sampling()
    raw_arguments: Annotated[Text, ui(group="General")] = ""
    """More arguments for the script, such as `--fp8_base_unet`. They override everything above."""
