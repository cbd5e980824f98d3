"""Every kind of record comes back from a cache as its encoder made it; small real encoders make them here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowloom.data.cache.keys import digest
from flowloom.data.cache.records.base import record_kinds, to_tensor
from flowloom.data.cache.shard_stores import LocalShards
from flowloom.data.cache.store import Cache
from flowloom.errors import CacheError
from flowloom.import_warnings import quiet_imports


def images() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    with quiet_imports():
        from diffusers import AutoencoderKL
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    spread: Any = vae.encode(torch.randn(1, 3, 16, 24), return_dict=False)[0]
    kept = torch.stack((spread.mean[0], spread.logvar[0]))
    return kept, lambda latents: vae.decode(latents[:1], return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def video() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    with quiet_imports():
        from diffusers import AutoencoderKLWan
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    clip = torch.randn(1, 3, 5, 16, 16)
    spread: Any = vae.encode(clip, return_dict=False)[0]
    return spread.mean[0], lambda latents: vae.decode(latents[None], return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def audio() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    with quiet_imports():
        from diffusers import AutoencoderOobleck
    torch.manual_seed(0)
    vae = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=1,
    )
    spread: Any = vae.encode(torch.randn(1, 1, 64), return_dict=False)[0]
    return spread.mean[0], lambda latents: vae.decode(latents[None], return_dict=False)[0]  # pyright: ignore[reportArgumentType]


def captions() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    return torch.randn(7, 16).to(torch.bfloat16), lambda states: states


def pooled() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes: Any = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=20, **sizes)).eval()
    return clip(torch.tensor([[1, 5, 2]])).pooler_output[0], lambda vector: vector


MAKERS = {
    "caption-pooled": pooled,
    "image-latents": images,
    "video-latents": video,
    "audio-latents": audio,
    "caption-states": captions,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # diffusers' Oobleck uses the older one
@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_a_record_comes_back_bit_for_bit_and_decodes_the_same(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        made, decode = MAKERS[name]()
    kind = record_kinds()[name]
    for i, tensor in enumerate((made, made.to(torch.bfloat16))):
        cache = Cache(LocalShards(tmp_path))
        key, sample = digest(name, i), digest("sample", i)
        array, dtype = kind.to_array(tensor)
        assert cache.put(kind.name, key, sample, array, dtype)
        cache.seal()
        found = Cache(LocalShards(tmp_path)).get(key, sample)
        assert found is not None
        back = to_tensor(found.payload, found.dtype, found.shape)
        assert torch.equal(back, tensor)
        assert back.dtype == tensor.dtype
        if not i:
            assert torch.equal(decode(back), decode(made))


def test_every_kind_has_an_encoder_here() -> None:
    assert record_kinds().keys() == MAKERS.keys()


def test_frames_and_planes_keep_their_places(tmp_path: Path) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        clip, _ = video()
    channels, frames, _, _ = clip.shape
    assert (channels, frames) == (4, 2), "5 frames are 1 latent frame and 1 for the next 4"


def test_a_tensor_of_another_kind_is_refused() -> None:
    with pytest.raises(CacheError, match="audio-latents has the axes C, T"):
        record_kinds()["audio-latents"].to_array(torch.zeros(3))
