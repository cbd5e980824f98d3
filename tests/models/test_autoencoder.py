"""The FLUX autoencoder loads from every spelling of its names and is diffusers' network."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from flowloom.models.weights import open_weights, save_weights

with quiet_imports():
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@pytest.fixture(scope="module")
def loaded(tiny_vae_path: Path) -> Autoencoder:
    return load_autoencoder(tiny_vae_path, CPU, torch.float32)


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def outputs(autoencoder: Autoencoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    latents = autoencoder.encode(pixels)
    return latents, autoencoder.decode(latents)


def test_it_is_the_network_that_diffusers_makes_of_the_file(
    tiny_vae_path: Path, loaded: Autoencoder, pixels: Tensor
):
    model: Any = AutoencoderKL(**SIZES, shift_factor=0.1159, scaling_factor=0.3611).eval()
    model.load_state_dict(convert_ldm_vae_checkpoint(load_file(tiny_vae_path), model.config))
    with torch.no_grad():
        mean = model.encode(pixels).latent_dist.mean
        expected = (mean - model.config.shift_factor) * model.config.scaling_factor
        image = model.decode(mean).sample
    latents, decoded = outputs(loaded, pixels)
    assert latents.shape == (2, 16, 6, 4)
    assert torch.equal(latents, expected)
    assert (decoded - image).abs().max() < 1e-5
    assert image.std() > 0.05
    assert loaded.factor == 8


def released_names(levels: int, res_blocks: int) -> set[str]:
    """The parameter names of ae.safetensors, spelled out from its published architecture."""
    norm_conv = [f"{kind}{i}" for kind in ("norm", "conv") for i in (1, 2)]
    attention = [f"mid.attn_1.{part}" for part in ("norm", "q", "k", "v", "proj_out")]
    middle = [f"mid.block_{i}.{part}" for i in (1, 2) for part in norm_conv] + attention
    modules = [
        f"{side}.{part}" for side in ("encoder", "decoder") for part in (*middle, "conv_in", "norm_out")
    ]
    modules += ["encoder.conv_out", "decoder.conv_out"]
    for level in range(levels):
        modules += [f"encoder.down.{level}.block.{i}.{p}" for i in range(res_blocks) for p in norm_conv]
        modules += [f"decoder.up.{level}.block.{i}.{p}" for i in range(res_blocks + 1) for p in norm_conv]
    modules += [f"encoder.down.{level}.downsample.conv" for level in range(levels - 1)]
    modules += [f"decoder.up.{level}.upsample.conv" for level in range(1, levels)]
    # ch_mult 1, 2, 4, 4: the width changes going into these.
    modules += [f"encoder.down.{level}.block.0.nin_shortcut" for level in (1, 2)]
    modules += [f"decoder.up.{level}.block.0.nin_shortcut" for level in (0, 1)]
    return {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}


def test_the_released_names_and_sizes_are_the_full_network(tmp_path: Path):
    path = tmp_path / "ae.safetensors"
    full = SIZES | {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
    with torch.device("meta"):
        model = AutoencoderKL(**full)
    assert sum(weight.numel() for weight in model.parameters()) == 83_819_683
    model = model.to(torch.float8_e4m3fn).to_empty(device="cpu")  # pyright: ignore[reportArgumentType]
    save_autoencoder(path, model)
    assert set(open_weights(path)) == released_names(levels=4, res_blocks=2)
    assert len(open_weights(path)) == 244
    loaded = load_autoencoder(path, torch.device("meta"), torch.bfloat16)
    found = {name: weight.shape for name, weight in loaded.model.state_dict().items()}
    assert found == {name: weight.shape for name, weight in model.state_dict().items()}


def test_a_diffusers_folder_or_file_loads_alike(tmp_path: Path, loaded: Autoencoder, pixels: Tensor):
    folder = tmp_path / "vae"
    loaded.model.save_pretrained(folder)
    again = load_autoencoder(folder, CPU, torch.float32)
    for found, expected in zip(outputs(again, pixels), outputs(loaded, pixels), strict=True):
        assert torch.equal(found, expected)
    assert json.loads((folder / "config.json").read_text())["norm_num_groups"] == 4


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae."])
def test_it_is_found_inside_a_whole_checkpoint(
    tiny_vae_path: Path, tmp_path: Path, loaded: Autoencoder, pixels: Tensor, prefix: str
):
    weights = open_weights(tiny_vae_path)
    tensors = {prefix + name: tensor for name, tensor in weights.items()}
    path = tmp_path / "all.safetensors"
    save_weights(path, tensors | {"model.diffusion_model.x": torch.zeros(2)}, weights.metadata)
    found = load_autoencoder(path, CPU, torch.float32).encode(pixels)
    assert torch.equal(found, loaded.encode(pixels))


def test_quantisation_convolutions_are_used_where_the_file_has_them(tmp_path: Path, pixels: Tensor):
    torch.manual_seed(0)
    model = AutoencoderKL(**SIZES | {"use_quant_conv": True, "use_post_quant_conv": True}).eval()  # pyright: ignore[reportArgumentType]
    save_autoencoder(tmp_path / "ae.safetensors", model)
    found = load_autoencoder(tmp_path / "ae.safetensors", CPU, torch.float32).encode(pixels)
    with torch.no_grad():
        expected = model.encode(pixels).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.allclose(found, (expected - 0.1159) * 0.3611, atol=1e-6)


def test_dtype_is_the_requested_one_for_any_pixels(tiny_vae_path: Path, pixels: Tensor):
    autoencoder = load_autoencoder(tiny_vae_path, CPU, torch.bfloat16)
    latents, decoded = outputs(autoencoder, pixels.float())
    assert latents.dtype == decoded.dtype == torch.bfloat16
    assert not latents.requires_grad


def test_a_file_that_is_no_autoencoder_is_named(tiny_vae_path: Path, tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"x": torch.zeros(2)}, {})
    with pytest.raises(WeightsError, match=r"w.safetensors: no encoder.conv_in.weight in it"):
        load_autoencoder(path, CPU, torch.float32)
    tensors = dict(open_weights(tiny_vae_path))
    save_weights(path, tensors, {})
    with pytest.raises(WeightsError, match="State its norm_num_groups"):
        load_autoencoder(path, CPU, torch.float32)
    short = copy.copy(tensors)
    del short["encoder.norm_out.bias"]
    save_weights(path, short, {"norm_num_groups": "4"})
    with pytest.raises(WeightsError, match=r"1 missing \(encoder.conv_norm_out.bias\)"):
        load_autoencoder(path, CPU, torch.float32)
