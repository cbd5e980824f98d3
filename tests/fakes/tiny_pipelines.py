"""diffusers' pipelines at tiny random sizes, for comparison and as model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from flowloom.import_warnings import quiet_imports

with quiet_imports():
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer


def make_autoencoder(**scaling: Any) -> AutoencoderKL:
    """FLUX's autoencoder, 8 pixels a latent."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **scaling,
    )


def make_scaled_autoencoder() -> AutoencoderKL:
    """`make_autoencoder` with FLUX's scaling, as pipelines apply it."""
    return make_autoencoder(shift_factor=0.1159, scaling_factor=0.3611)


def make_scheduler(*, is_shifted: bool = True) -> FlowMatchEulerDiscreteScheduler:
    """The Euler sampler, with FLUX's shift by size or an even schedule."""
    shift = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=is_shifted, **shift if is_shifted else {})


def make_flux1_transformer(*, is_dev: bool) -> FluxTransformer2DModel:
    """FLUX.1's network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=128,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=is_dev,
        ).eval()


def write_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer of single letters, written to `folder`."""
    letters = [chr(i) for i in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=77)


def make_flux1_pipeline(t5_path: Path, folder: Path, *, is_dev: bool) -> FluxPipeline:
    """FLUX.1's pipeline with the T5 at `t5_path`; saved in `folder / "pipeline"`."""
    tokenizer = write_clip_tokenizer(folder / "clip")
    with torch.random.fork_rng():
        torch.manual_seed(6)
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=37,
                num_hidden_layers=2,
                num_attention_heads=4,
                bos_token_id=tokenizer.bos_token_id,  # pyright: ignore[reportArgumentType]
                eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
            )
        )
        vae = make_scaled_autoencoder()
    parts: dict[str, Any] = {
        "scheduler": make_scheduler(is_shifted=is_dev),
        "vae": vae.eval(),
        "text_encoder": clip.eval(),
        "tokenizer": tokenizer,
        "text_encoder_2": T5EncoderModel.from_pretrained(t5_path, local_files_only=True).eval(),
        "tokenizer_2": T5Tokenizer.from_pretrained(t5_path, local_files_only=True, extra_ids=0),
        "transformer": make_flux1_transformer(is_dev=is_dev),
    }
    pipeline = FluxPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "pipeline")
    return pipeline
