"""The autoencoder of Wan 2.1 and Qwen-Image is diffusers', from every spelling of its names."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.import_warnings import quiet_imports
from flowloom.models.causal_autoencoder import load_causal_autoencoder
from flowloom.models.recognize import recognize
from flowloom.models.weights import open_weights, save_weights

with quiet_imports():
    from diffusers import AutoencoderKLQwenImage
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
    with pytest.raises(WeightsError, match=r"not the VAE of Wan 2\.1"):
        load_causal_autoencoder(tiny_vae_path, CPU, torch.float32)
