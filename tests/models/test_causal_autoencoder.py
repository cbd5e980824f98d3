"""The autoencoder of Wan 2.1 and Qwen-Image is diffusers', from every spelling of its names."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.causal_autoencoder import WAN22, load_causal_autoencoder
from flowloom.models.recognize import recognize
from flowloom.models.weights import open_weights, save_weights

with quiet_imports():
    from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: Any = AutoencoderKLQwenImage(base_dim=8, z_dim=16, num_res_blocks=2).eval()
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return model, folder


def in_wans_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names that diffusers' converter makes these of."""
    layers = [f"residual.{i}" for i in (0, 2, 3, 6)] + ["shortcut", "norm", "to_qkv", "proj", "resample.1"]
    places = [f"{kind}.{i}" for kind in ("downsamples", "upsamples", "middle") for i in range(15)]
    inner = [f"{place}.{layer}" for place, layer in product(places, [*layers, "time_conv"])]
    parts = [f"{side}.{part}" for side in ("encoder", "decoder") for part in (*inner, "head.0", "head.2")]
    parts += ["encoder.conv1", "decoder.conv1", "conv1", "conv2"]
    names = {f"{part}.{leaf}": f"{part}.{leaf}" for part in parts for leaf in ("weight", "bias", "gamma")}
    theirs = {new: old for new, old in convert_wan_vae_to_diffusers(names).items() if new in state}
    assert theirs.keys() == state.keys()
    return {old: state[new] for new, old in theirs.items()}


@pytest.mark.parametrize("spelling", ["folder", "file", "prefixed"])
def test_latents_and_pixels_are_diffusers(saved: tuple[Any, Path], tmp_path: Path, spelling: str):
    model, path = saved
    if spelling != "folder":
        state = in_wans_names(model.state_dict())
        prefix = "vae." if spelling == "prefixed" else ""
        path = tmp_path / "vae.safetensors"
        save_weights(path, {f"{prefix}{name}": tensor for name, tensor in state.items()}, {})
    assert [found.architecture for found in recognize(open_weights(path).shapes)] == ["vae-wan"]
    ours = load_causal_autoencoder(path, CPU, torch.float32)
    assert (ours.factor, ours.channels) == (8, 16)
    clip = torch.rand(2, 3, 5, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = (torch.tensor(model.config[f"latents_{name}"]).view(16, 1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        spread = model.encode(clip).latent_dist
        decoded = model.decode(spread.mean).sample
    latents = ours.encode(clip)
    torch.testing.assert_close(latents, (spread.mean - mean) / std)
    torch.testing.assert_close(ours.decode(latents), decoded, rtol=1e-4, atol=1e-5)
    # A draw of the normalized latents is the normalized draw.
    means, log_variances = ours.encode_spread(clip).unbind(1)
    torch.testing.assert_close(means, latents)
    torch.testing.assert_close((log_variances / 2).exp() * std, spread.std)
    image = ours.encode(clip[:, :, 0])
    torch.testing.assert_close(image, latents[:, :, 0], rtol=1e-4, atol=1e-5)
    assert ours.encode_spread(clip[:, :, 0]).shape == (2, 2, 16, 4, 6)
    assert ours.decode(image).shape == (2, 3, 32, 48)


def test_another_vae_is_refused(tiny_vae_path: Path):
    with pytest.raises(WeightsError, match=r"not the VAE of Wan"):
        load_causal_autoencoder(tiny_vae_path, CPU, torch.float32)


def in_wan22s_names(name: str) -> str:
    """The name in Wan2.2_VAE.pth of what diffusers calls `name`."""
    name = re.sub(r"(down|up)_blocks\.(\d)\.(resnets\.(\d)|\w+sampler)", _grouped, name)
    if "samples." in name or "mid_block.resnets" in name:
        layers = {"norm1": 0, "conv1": 2, "norm2": 3, "conv2": 6}
        name = re.sub(r"\.(norm1|conv1|norm2|conv2)\.", lambda at: f".residual.{layers[at[1]]}.", name)
    name = name.replace("conv_in", "conv1").replace("norm_out", "head.0").replace("conv_out", "head.2")
    name = name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda at: f"middle.{2 * int(at[1])}", name)
    return name.replace("mid_block.attentions.0", "middle.1").replace(".conv_shortcut.", ".shortcut.")


def _grouped(at: re.Match[str]) -> str:
    return f"{at[1]}samples.{at[2]}.{at[1]}samples.{at[4] or 9}"


@pytest.mark.parametrize("is_folder", [True, False])
def test_wan_22s_latents_and_pixels_are_diffusers(tmp_path: Path, is_folder: bool):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        sizes: Any = {"z_dim": 48, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 8}
        model: Any = AutoencoderKLWan(base_dim=4, **sizes | WAN22).eval()
    path = tmp_path if is_folder else tmp_path / "vae.safetensors"
    if is_folder:
        model.save_pretrained(path)
    else:
        save_weights(path, {in_wan22s_names(name): tensor for name, tensor in model.state_dict().items()}, {})
    assert [found.architecture for found in recognize(open_weights(path).shapes)] == ["vae-wan22"]
    ours = load_causal_autoencoder(path, CPU, torch.float32)
    assert (ours.factor, ours.channels) == (16, 48)
    clip = torch.rand(1, 3, 5, 32, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = (torch.tensor(model.config[f"latents_{name}"]).view(48, 1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        spread = model.encode(clip).latent_dist
        decoded = model.decode(spread.mean).sample
    latents = ours.encode(clip)
    assert latents.shape == (1, 48, 2, 2, 4)
    torch.testing.assert_close(latents, (spread.mean - mean) / std)
    torch.testing.assert_close(ours.decode(latents), decoded, rtol=1e-4, atol=1e-5)


def test_the_features_kept_between_frames_end_with_the_clip(saved: tuple[Any, Path]):
    ours = load_causal_autoencoder(saved[1], CPU, torch.float32)
    clip = torch.rand(1, 3, 5, 32, 32)
    assert torch.equal(ours.encode(clip), ours.encode(clip))
    with pytest.raises(ValueError, match="4 n \\+ 1"):
        ours.encode(clip[:, :, :4])


def test_large_frames_are_processed_in_tiles(saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flowloom.models.causal_autoencoder.TILED_FROM", 256 * 256)
    ours = load_causal_autoencoder(saved[1], CPU, torch.float32)
    latents = ours.encode(torch.rand(1, 3, 1, 272, 256))
    assert ours.model.use_tiling
    assert ours.decode(latents).shape == (1, 3, 1, 272, 256)
    ours.encode(torch.zeros(1, 3, 64, 64))
    assert not ours.model.use_tiling
