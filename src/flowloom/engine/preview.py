"""Image generation: previews during training, and `flowloom sample`."""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowloom.config.run import InferenceSection, RunConfig
from flowloom.data.images.decode import load_whole
from flowloom.data.references import reference_sizes
from flowloom.engine.clips import Generated, generated, save_generated
from flowloom.engine.encode import Encoders
from flowloom.engine.parallel.ranks import ALONE, Ranks
from flowloom.engine.randomness import generator
from flowloom.engine.state import Precision, TrainState
from flowloom.errors import ConfigError, Problem
from flowloom.files import write_json
from flowloom.flow_matching.guidance import guided, uses_cfg
from flowloom.flow_matching.path import velocity_from_x0
from flowloom.flow_matching.samplers import SAMPLERS, Model
from flowloom.models.family import Conditioning, Grid, family_for, family_of
from flowloom.run.directory import RunDir

WHITE, MAX_MEGAPIXELS = (255, 255, 255), 1e3
"""Of reference images: the background of transparent ones, and the largest size."""


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of image generation."""

    width: int
    height: int
    steps: int = 20
    cfg: float = 1.0
    guidance: float = 0.0
    first_n_steps_wo_cfg: int = 0
    sampler: str = "euler"
    negative: str = ""
    max_tokens: int | None = None
    """Maximum length of prompts in tokens; None: that of captions."""
    num_frames: int = 1
    """Frames of a clip; 1: an image."""
    fps: float | None = None
    """Frame rate of a clip."""
    references: tuple[str, ...] = ()
    """Files of reference images that every prompt is about."""


@dataclass(frozen=True)
class SampleGenerator:
    """A network with its encoders, ready to generate."""

    model: nn.Module
    encoders: Encoders
    precision: Precision
    predicts_x0: bool = False
    sharers: Ranks = ALONE
    """The ranks that share the network's weights and generate together; the first one gets the images."""

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], params: SamplingParams
    ) -> list[Generated]:
        """One image or clip for each prompt and seed; the same alone or in a batch.

        The sampler solves dx/dt = velocity from noise (t = 1) to image (t = 0) on FLOW's schedule, which
        is shifted towards noise for larger images.
        """
        family = family_of(self.model)
        x, texts, grid = self.sharers.from_first(lambda: self._start(prompts, seeds, params))
        x = x.to(self.precision.device)
        levels = family.schedule(self.model, params.steps, x.shape[1])
        plain, with_cfg = self._velocities(texts, grid, params)
        is_plain = [not uses_cfg(i, params.cfg, params.first_n_steps_wo_cfg) for i in range(params.steps)]
        start, sampler = sum(is_plain), SAMPLERS[params.sampler]
        with self.precision.autocast():
            # Two fields, two runs of the sampler: multi-step samplers would carry guidance into the steps
            # without it, and the other way round.
            x = sampler(plain, x, levels[: start + 1])
            x = sampler(with_cfg, x, levels[start:])
        if not self.sharers.is_first:
            return []
        return [self._decode(family.unpack(tokens, grid), params.fps) for tokens in torch.split(x, 1)]

    def _start(
        self, prompts: Sequence[str], seeds: Sequence[int], params: SamplingParams
    ) -> tuple[Tensor, list[Conditioning], Grid]:
        """Noise, texts with the negative one last, and grid; on the CPU."""
        family, codec = family_of(self.model), self.encoders.autoencoder
        pixels, clips = codec.factor * family.patch, family.defaults.clips
        grid: Grid = (params.height // pixels * family.patch, params.width // pixels * family.patch)
        if clips:
            grid = ((params.num_frames - 1) // clips.frames_per_latent + 1, *grid)
        tokens, width = math.prod(grid) // family.patch**2, codec.channels * family.patch**2
        noises = [torch.randn(tokens, width, generator=generator(seed, "picture")) for seed in seeds]
        wanted = [*prompts, params.negative]
        if params.references:
            return torch.stack(noises), self._edit_texts(wanted, params), grid
        return torch.stack(noises), self.encoders.prompts(wanted, params.max_tokens), grid

    def _edit_texts(self, prompts: Sequence[str], params: SamplingParams) -> list[Conditioning]:
        encoders = self.encoders
        size_of = reference_sizes(encoders.family, encoders.reference_resolution)
        assert size_of
        images = [load_whole(Path(name), size_of, WHITE, MAX_MEGAPIXELS) for name in params.references]
        return encoders.edit_prompts(prompts, images, params.max_tokens)

    def _velocities(
        self, texts: Sequence[Conditioning], grid: Grid, params: SamplingParams
    ) -> tuple[Model, Model]:
        """The velocity field of all texts but the last, the negative one, without guidance and with it."""
        device, family = self.precision.device, family_of(self.model)
        *positive, empty = ({name: tensor.to(device) for name, tensor in text.items()} for text in texts)
        negative = [empty] * len(positive)
        guidance = torch.full((len(positive),), params.guidance or family.defaults.guidance, device=device)

        def one_pass(x: Tensor, level: float, texts: Sequence[Conditioning]) -> Tensor:
            noise_level = torch.full((len(x),), level, device=device)
            prediction = family.predict(self.model, x, noise_level, texts, grid, guidance).float()
            return velocity_from_x0(prediction, x, noise_level, 0.0) if self.predicts_x0 else prediction

        def plain(x: Tensor, level: float) -> Tensor:
            return one_pass(x, level, positive)

        def with_cfg(x: Tensor, level: float) -> Tensor:
            without = one_pass(x, level, negative)
            return guided(plain(x, level), without, params.cfg, keeps_norms=family.defaults.keeps_norms)

        return plain, with_cfg

    def _decode(self, latents: Tensor, fps: float | None) -> Generated:
        pixels = self.encoders.autoencoder.decode(latents)
        levels = ((pixels[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return generated(levels.movedim(0, -1).cpu().numpy(), fps)


def sampling_params(section: InferenceSection, config: RunConfig) -> SamplingParams:
    """The sampling parameters of a FLOW inference section."""
    width, height = section.image_dim
    num_frames, fps = clip_size(section, config)
    return SamplingParams(
        width,
        height,
        section.steps,
        section.cfg,
        section.guidance,
        section.first_n_steps_wo_cfg,
        config.preview.sampler,
        max_tokens=section.t5_max_length,
        num_frames=num_frames,
        fps=fps,
        references=tuple(section.reference_paths),
    )


def clip_size(section: InferenceSection, config: RunConfig) -> tuple[int, float | None]:
    """Number of frames and frame rate of a preview: stated, or those of the training clips.

    Raises:
        ConfigError: the autoencoder does not make this number of frames.
    """
    clips = family_for(config.model).defaults.clips
    if clips is None:
        return 1, None
    frames = section.num_frames or max(config.video.num_frames, default=clips.num_frames)
    step = clips.frames_per_latent
    if (frames - 1) % step:
        message = f"is {frames}; the autoencoder makes {step}n + 1 frames."
        nearest = (frames - 1) // step * step + 1
        hint = f"Set it to {nearest} or {nearest + step}."
        raise ConfigError("the previews", [Problem("inference.num_frames", message, hint=hint)])
    return frames, section.fps or config.video.fps or clips.fps


def sections_due(config: RunConfig, step: int, asked: bool) -> list[InferenceSection]:
    """The inference sections whose period ends at `step`; all of them when a preview was requested."""
    sections = [section for section in (config.inference, *config.extra_inference_config) if section]
    return [section for section in sections if asked or step % section.inference_every == 0]


def generate_previews(
    run_dir: RunDir,
    state: TrainState,
    sample_generator: SampleGenerator,
    sections: Sequence[InferenceSection],
    batch_caption: str | None,
) -> Path:
    """Generate the previews of `sections` into the sample folder of the current step; return the folder.

    The seed of each depends only on its position, so that steps can be compared. Ranks that share
    the network call this together; the first one writes.
    """
    final = run_dir.samples_dir(state.position.step)
    partial = final.with_name(f"{final.name}.tmp")
    caption = state.sharers.from_first(lambda: batch_caption)
    if state.ranks.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    records: list[dict[str, Any]] = []
    with averaged(state), sample_generator.encoders.borrowed():
        for section in sections:
            prompts = [*section.prompts]
            # A caption about a row's reference images means nothing without them.
            is_edit = sample_generator.encoders.reader is not None
            if caption is not None and state.config.preview.batch_caption and not is_edit:
                prompts.append(caption)
            is_from_batch = [*[False] * len(section.prompts), True][: len(prompts)]
            params = sampling_params(section, state.config)
            seeds = [state.config.training.master_seed + i for i in range(len(prompts))]
            images = generate_in_batches(
                sample_generator, prompts, seeds, params, state.config.preview.max_batch
            )
            if not state.ranks.is_first:
                deque(images, maxlen=0)
                continue
            formats = state.config.preview.format, state.config.preview.clip_format
            for image, prompt, seed, mark in zip(images, prompts, seeds, is_from_batch, strict=True):
                files = save_generated(image, partial, f"{len(records):02d}", *formats)
                record = {"prompt": prompt, "seed": seed, "from_batch": mark}
                records.append(files | record | record_of(params))
    if state.ranks.is_first:
        write_json(partial / "samples.json", records)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    return final


def generate_in_batches(
    sample_generator: SampleGenerator,
    prompts: Sequence[str],
    seeds: Sequence[int],
    params: SamplingParams,
    size: int,
) -> Iterator[Generated]:
    """`SampleGenerator.generate` for any number of prompts, `size` at a time; large clips alone."""
    size = size if params.num_frames == 1 else 1
    for start in range(0, len(prompts), size):
        cut = slice(start, start + size)
        yield from sample_generator.generate(prompts[cut], seeds[cut], params)


def record_of(params: SamplingParams) -> dict[str, Any]:
    """`params` for samples.json; an image has no frames, and few have references."""
    record = asdict(params)
    if not params.references:
        del record["references"]
    if params.num_frames == 1:
        del record["num_frames"], record["fps"]
    return record


def averaged(state: TrainState) -> AbstractContextManager[None]:
    """Put the EMA weights into the network, if there are any and previews use them."""
    if state.ema and state.config.preview.weights == "ema":
        return state.averaged()
    return nullcontext()
