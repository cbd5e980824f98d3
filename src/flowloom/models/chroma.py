"""Chroma from files: as released, as FLOW or ComfyUI writes it, or in diffusers' names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from flowloom.errors import WeightsError
from flowloom.models.chroma_names import is_diffusers, sources
from flowloom.models.families.chroma import X0_FLAG
from flowloom.models.weights import Assign, Weights, assign_weights, open_weights
from flowloom.nn.chroma import Chroma, ChromaParams, params_from_shapes

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
NO_WEIGHTS = (X0_FLAG, "mod_index")
"""Buffers that FLOW saves beside the weights: a flag of x0 networks, and the numbers 0 to 343."""
# Marks of other files, and the message for each.
_OTHERS = {
    "lora_": "an adapter. Name the base network here, and load the adapter on top of it",
    "lokr_": "an adapter. Name the base network here, and load the adapter on top of it",
    "nerf_": "Chroma Radiance, which works on pixels. Name it in model.path instead of model.chroma_path",
    "vector_in.": "FLUX, from which Chroma was made. Download Chroma1-HD or Chroma1-Base",
}


def load_chroma(
    path: Path, device: torch.device, dtype: torch.dtype, assign: Assign = assign_weights
) -> Chroma:
    """The network in `path`, on `device` in `dtype`, with its weights put there by `assign`.

    Raises:
        WeightsError: the file is missing, damaged, or no Chroma.
    """
    weights = open_chroma(path)
    params = _params(weights)
    with torch.device("meta"):
        model = Chroma(params)
    assign(model, weights, device, dtype)
    return model


def read_chroma_params(path: Path) -> ChromaParams:
    """The sizes of the network in `path`, from names and shapes alone.

    Raises:
        WeightsError: the file is missing, damaged, or no Chroma.
    """
    return _params(open_chroma(path))


def open_chroma(path: Path) -> Weights:
    """The tensors in `path` by the checkpoint's names, not read yet, whichever names the file has.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    path = Path(path)
    if (path / "model_index.json").is_file():
        path = path / "transformer"
    weights = open_weights(path).below(*PREFIXES)
    names = {name: (name,) for name in weights if name not in NO_WEIGHTS}
    return weights.gathered(sources(names) if is_diffusers(names) else names)


class Loader(NamedTuple):
    """How a family of these networks opens a file."""

    open: Callable[[Path], Weights]
    read_params: Callable[[Path], ChromaParams]
    load: Callable[[Path, torch.device, torch.dtype, Assign], nn.Module]


LOADER = Loader(open_chroma, read_chroma_params, load_chroma)


def _params(weights: Weights) -> ChromaParams:
    for mark, what in _OTHERS.items():
        if any(mark in name for name in weights):
            raise WeightsError(f"{weights.path}: this is {what}.")
    try:
        params = params_from_shapes(weights.shapes)
    except KeyError as error:
        raise WeightsError(f"{weights.path}: not a Chroma network: it has no {error.args[0]}.") from error
    if sum(params.axes_dim) * params.num_heads != params.hidden_size:
        raise WeightsError(
            f"{weights.path}: not a Chroma network: {params.num_heads} heads do not make a width of "
            f"{params.hidden_size} with a head size that is a multiple of 16."
        )
    return params
