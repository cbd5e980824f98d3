"""Wan's pipelines at tiny random sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowloom.config.model_files import resolve_paths
from flowloom.config.run import ModelSection
from flowloom.import_warnings import quiet_imports
from flowloom.models.causal_autoencoder import WAN22
from tests.conftest import write_tokenizer

with quiet_imports():
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

TEXT_WIDTH = 32
CPU = torch.device("cpu")
PROMPTS = ["a red bar on  white &amp; blue, number 1", "blue bar"]
WIDTH, HEIGHT, FRAMES = 64, 32, 5


def make_transformer(**sizes: Any) -> WanTransformer3DModel:
    """Wan's network with random weights, as wide as its latents."""
    usual: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 18,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 32,
        "ffn_dim": 96,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**usual | sizes).eval()


def make_autoencoder(*, is_wan22: bool) -> AutoencoderKLWan:
    """Wan 2.1's or 2.2's autoencoder with random weights."""
    if not is_wan22:
        return AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval()
    sizes: dict[str, Any] = {"z_dim": 48, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 8}
    return AutoencoderKLWan(base_dim=4, **sizes | WAN22).eval()


def save(folder: Path, **options: Any) -> WanPipeline:
    """diffusers' pipeline, saved in `folder`.

    Args:
        options: its settings: boundary_ratio of two networks, expand_timesteps of Wan 2.2 TI2V.
    """
    is_ti2v = options.get("expand_timesteps", False)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder / "spiece.model")
    with torch.random.fork_rng():
        torch.manual_seed(6)
        sizes: Any = {"vocab_size": vocabulary, "d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 37, "num_heads": 4}
        parts: dict[str, Any] = {
            "scheduler": UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            "vae": make_autoencoder(is_wan22=is_ti2v),
            "text_encoder": UMT5EncoderModel(UMT5Config(**sizes, num_layers=2)).eval(),
            "tokenizer": T5Tokenizer.from_pretrained(folder, local_files_only=True, extra_ids=0),
            "transformer": make_transformer(**{"in_channels": 48, "out_channels": 48} if is_ti2v else {}),
        }
        if "boundary_ratio" in options:
            parts["transformer_2"] = make_transformer()
    (folder / "spiece.model").unlink()
    pipeline = WanPipeline(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


class Tiny(NamedTuple):
    """diffusers' pipeline, its family here, and the model section that names nothing but its folder."""

    pipeline: Any
    family: Any
    section: ModelSection

    def network(self, dtype: torch.dtype = torch.float32) -> Any:
        return self.family.load_network(self.section.network_path, CPU, dtype)

    def grid(self, frames: int = FRAMES) -> tuple[int, int, int]:
        return (frames - 1) // 4 + 1, HEIGHT // self.family.factor, WIDTH // self.family.factor

    def texts(self) -> list[dict[str, Tensor]]:
        conditioner = self.family.load_conditioner(self.section, CPU, torch.float32)
        return conditioner.encode(PROMPTS, self.section.max_text_tokens)


def made(folder: Path, family: Any, **options: Any) -> Tiny:
    pipeline = save(folder, **options)
    return Tiny(pipeline, family, resolve_paths(ModelSection(path=str(folder)), Path()))
