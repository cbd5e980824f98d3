"""Make `assets/ae.safetensors`: `python -m flowloom.demo.make.autoencoder [MINUTES]`, or train it further.

FLUX's autoencoder at 2.8 million parameters: 8 pixels a latent, 16 channels. Ten channels are trained to
be the image at a quarter of its size (colours and their slopes), six are free for finer strokes: a small flow
learns latents with a simple meaning quickly. It decodes OpenMoji images from latents with a little noise, by
absolute and squared error and the error of neighbouring differences.
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
from torch.nn import functional as F

from flowloom.demo.captions import COLOURS, SHAPES
from flowloom.demo.images import all_drawings, drawings, rasterise
from flowloom.import_warnings import quiet_imports
from flowloom.models.autoencoder import SCALE, SHIFT, load_autoencoder, save_autoencoder

with quiet_imports():
    from diffusers import AutoencoderKL

OUT = Path(__file__).parents[1] / "assets" / "ae.safetensors"
SIZE, BATCH, LR = 64, 6, 1e-3
PLAIN_REPEATS = 6
"""Repeats of the plain hearts, circles and squares; other drawings come once."""
MAX_NOISE = 0.2
LUMINANCE_AND_CHROMA = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.0, -1.0], [-0.6, 1.2, -0.6]])
"""Errors are measured in these: in plain RGB the network learns brightness first and colour hardly at all."""
SLOPES = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 4
"""Mean, slope across, slope down and their product of 2 x 2 neighbours."""
TAUGHT = (0, 1, 2, 3, 4, 5, 6, 8, 9, 10)
"""The kept ones of 3 colours x 4 slopes: all of brightness, the two chromas without the product."""


def read_images() -> tuple[Tensor, Tensor]:
    """All drawings, including flags, as uint8 (N, 3, SIZE, SIZE); and the indices to sample from."""
    plain = {p.code for p in drawings() if p.caption in {f"{c} {s}" for c in COLOURS for s in SHAPES}}
    pixels, indices = [], []
    for i, svg in enumerate(all_drawings()):
        with Image.open(io.BytesIO(rasterise(svg, SIZE))) as image:
            pixels.append(np.asarray(image.convert("RGB")))
        indices += [i] * (PLAIN_REPEATS if svg.stem in plain else 1)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(indices)


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


def thumbnail(images: Tensor) -> Tensor:
    """Content of the taught channels before scaling: (B, 10, H/8, W/8) of images (B, 3, H, W)."""
    colours = torch.einsum("ij,bjhw->bihw", LUMINANCE_AND_CHROMA, F.avg_pool2d(images, 4))
    neighbours = F.pixel_unshuffle(colours, 2).unflatten(1, (3, 4))
    return torch.einsum("sn,bcnhw->bcshw", SLOPES, neighbours).flatten(1, 2)[:, TAUGHT]


def error(decoded: Tensor, images: Tensor) -> Tensor:
    """Difference between two images."""
    a, b = (torch.einsum("ij,bjhw->bihw", LUMINANCE_AND_CHROMA, x) for x in (decoded, images))
    edges = sum((a.diff(dim=d) - b.diff(dim=d)).abs().mean() for d in (2, 3))
    return (a - b).abs().mean() + (a - b).square().mean() + 0.5 * edges


def varied(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] of uint8 ones: moved, mirrored, and some in other colours."""
    images = images.float() / 127.5 - 1
    images = images.flip(-1) if torch.rand(()) < 0.5 else images
    images = images.roll(torch.randint(-6, 7, (2,)).tolist(), (-2, -1))
    recoloured = torch.rand(len(images), 1, 1, 1) < 0.3
    images = torch.where(recoloured, images[:, torch.randperm(3)], images)
    return images.contiguous(memory_format=torch.channels_last)


def train(model: AutoencoderKL, dataset: Tensor, indices: Tensor, minutes: float) -> AutoencoderKL:
    """The average of the weights at the end of `minutes` with a cosine of learning rates."""
    torch.manual_seed(0)
    model = model.to(memory_format=torch.channels_last).train().requires_grad_(True)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    known = thumbnail(dataset[::4].float() / 127.5 - 1)
    centre, deviation = (f((0, 2, 3), keepdim=True) for f in (known.mean, known.std))
    start, step, quality = time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - start) / 60 / minutes) < 1:
        step += 1
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = LR * min(1.0, step / 100) * cosine
        images = varied(dataset[indices[torch.randint(0, len(indices), (BATCH,))]])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = (model.encode(images).latent_dist.mean.float() - SHIFT) * SCALE
            noisy = latents + MAX_NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(latents)
            drawn = model.decode(noisy / SCALE + SHIFT).sample.float()
        free = latents[:, len(TAUGHT) :]
        taught = (latents[:, : len(TAUGHT)] - (thumbnail(images) - centre) / deviation).square().mean()
        spread = free.mean((0, 2, 3)).square().mean() + (free.std((0, 2, 3)) - 1).square().mean()
        drawing = error(drawn, images)
        loss = drawing + 0.1 * taught + 0.05 * spread
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - decay)
        quality = 0.98 * quality + 0.02 * drawing.item()
        if step % 100 == 0:
            sys.stdout.write(f"{share:4.0%}  step {step}  drawing {quality:.4f}  taught {taught:.4f}\n")
    model.load_state_dict(average)
    return model


@torch.no_grad()
def decibels(model: AutoencoderKL, dataset: Tensor) -> float:
    """Mean PSNR of reconstructed images."""
    images = dataset[::40].float() / 127.5 - 1
    drawn = model.decode(model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return (10 * torch.log10(4 / (drawn - images).square().mean((1, 2, 3)))).mean().item()


def main() -> None:
    """Train and write the file."""
    torch.set_num_threads(1)
    dataset, indices = read_images()
    model = load_autoencoder(OUT, torch.device("cpu"), torch.float32).model if OUT.exists() else new_model()
    model = train(model, dataset, indices, float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
    sys.stdout.write(f"{decibels(model, dataset):.2f} dB\n")
    save_autoencoder(OUT, model.half())


if __name__ == "__main__":
    main()
