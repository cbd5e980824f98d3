"""The demo's Chroma before it is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from flowloom.models.weights import save_weights
from flowloom.nn.chroma import ChromaParams
from flowloom.nn.tiny import random_chroma_weights
from flowloom.tasks.demo import ASSETS

PARAMS = ChromaParams(
    in_channels=64,
    context_in_dim=128,
    hidden_size=256,
    mlp_ratio=4.0,
    num_heads=8,
    depth=2,
    depth_single_blocks=4,
    axes_dim=(4, 14, 14),
    theta=10_000,
    qkv_bias=True,
    approximator_in_dim=64,
    approximator_depth=2,
    approximator_hidden_size=128,
)
"""The released architecture at one thousandth of its size."""


def make_models(folder: Path) -> Path:
    """Create the untrained network, VAE and T5 in `folder` if missing; returns the network's path."""
    shutil.copytree(ASSETS, folder, dirs_exist_ok=True)
    base = folder / "chroma.safetensors"
    if not base.exists():
        write_base(base)
    return base


def write_base(path: Path) -> None:
    """Write the same random weights to `path` each time, for training to start from."""
    save_weights(path, random_chroma_weights(PARAMS, seed=0), {"format": "pt"})
