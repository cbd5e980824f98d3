"""Makes `assets/ae.safetensors`: `python -m flowloom.demo.make.autoencoder [MINUTES]`, 30 minutes a core.

FLUX's autoencoder at 2.8 million parameters: 8 pixels a latent, 16 channels. It learns to draw OpenMoji
pictures again from their latents, by absolute and squared error and the error of neighbouring differences.
"""

from __future__ import annotations

import io
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from flowloom.demo.pictures import all_drawings, rasterise
from flowloom.parts.families.autoencoder import SCALE, save_autoencoder
from flowloom.parts.quiet import quiet_imports

with quiet_imports():
    from diffusers import AutoencoderKL

OUT = Path(__file__).parents[1] / "assets" / "ae.safetensors"
SIZE, BATCH, LR = 64, 8, 1.5e-3
KL_WEIGHT = 4e-4
LUMINANCE_AND_CHROMA = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.0, -1.0], [-0.6, 1.2, -0.6]])
"""Errors are measured in these: in plain RGB the network learns brightness first and colour hardly at all."""


def read_pictures() -> Tensor:
    """Every drawing, flags and all, as uint8 (N, 3, SIZE, SIZE)."""
    pixels = []
    for svg in all_drawings():
        with Image.open(io.BytesIO(rasterise(svg, SIZE))) as image:
            pixels.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def new_model() -> AutoencoderKL:
    """A small network of FLUX's kind."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def error(drawn: Tensor, images: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """What training makes small: how the pictures differ, and a little of what the latents tell."""
    a, b = (torch.einsum("ij,bjhw->bihw", LUMINANCE_AND_CHROMA, x) for x in (drawn, images))
    edges = sum((a.diff(dim=d) - b.diff(dim=d)).abs().mean() for d in (2, 3))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return (a - b).abs().mean() + (a - b).square().mean() + 0.5 * edges + KL_WEIGHT * kl


def train(pictures: Tensor, minutes: float) -> AutoencoderKL:
    """The average of the weights at the end of `minutes` with a cosine of learning rates."""
    torch.manual_seed(0)
    model = new_model().to(memory_format=torch.channels_last)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = model.parameters()
    optimizer = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    start = time.monotonic()
    step = 0
    while (share := (time.monotonic() - start) / 60 / minutes) < 1:
        step += 1
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = LR * min(1.0, step / 100) * cosine
        images = pictures[torch.randint(0, len(pictures), (BATCH,))].float() / 127.5 - 1
        images = images.flip(-1) if torch.rand(()) < 0.5 else images
        images = images.roll(torch.randint(-6, 7, (2,)).tolist(), (-2, -1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = model.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist
            mean, logvar = latents.mean.float(), latents.logvar.float().clamp(-8, 8)
            drawn = model.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean)).sample.float()
        loss = error(drawn, images, mean, logvar)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - decay)
        if step % 200 == 0:
            sys.stdout.write(f"{100 * share:.0f} %  step {step}  loss {loss.item():.4f}\n")
    model.load_state_dict(average)
    return model


@torch.no_grad()
def normalise(model: AutoencoderKL, pictures: Tensor) -> None:
    """Scale the latents so that every channel has deviation 1 after FLUX's scale; decoding is unchanged."""
    images = (part.float() / 127.5 - 1 for part in pictures[::6].split(64))
    deviation = torch.cat([model.encode(part).latent_dist.mean for part in images]).std((0, 2, 3))
    gain = 1 / (deviation * SCALE)
    model.encoder.conv_out.weight[:16] *= gain[:, None, None, None]
    model.encoder.conv_out.bias[:16] *= gain
    model.decoder.conv_in.weight /= gain[None, :, None, None]


@torch.no_grad()
def decibels(model: AutoencoderKL, pictures: Tensor) -> float:
    """Mean PSNR of pictures drawn again."""
    images = pictures[::40].float() / 127.5 - 1
    drawn = model.decode(model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return (10 * torch.log10(4 / (drawn - images).square().mean((1, 2, 3)))).mean().item()


def main() -> None:
    """Train, normalise and write the file."""
    torch.set_num_threads(1)
    pictures = read_pictures()
    model = train(pictures, float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
    normalise(model, pictures)
    sys.stdout.write(f"{decibels(model, pictures):.2f} dB\n")
    save_autoencoder(OUT, model.half())


if __name__ == "__main__":
    main()
