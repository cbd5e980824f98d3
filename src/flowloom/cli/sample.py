"""`flowloom sample` and `flowloom export`: parse, call, print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flowloom.cli.lint import add_storage, storage_of
from flowloom.cli.resume import run_dir_or_url

OK = 0


def sample(arguments: list[str]) -> int:
    """`flowloom sample SOURCE --prompt TEXT`; the exit status."""
    from flowloom.cli.main import command_parser

    parser = command_parser("sample", "SOURCE --prompt TEXT [...] [options]")
    add = parser.add_argument
    about = "run directory, checkpoint or weights; also a mirrored run or its checkpoint: s3://BUCKET/RUN"
    add("source", metavar="SOURCE", type=run_dir_or_url, help=about)
    add("--config", type=Path, metavar="FILE", help="configuration with the VAE and T5; default: the run's")
    add("--prompt", action="append", required=True, metavar="TEXT", help="repeat it for more images")
    add("--negative", default="", metavar="TEXT", help="negative prompt")
    add("--size", type=_size, metavar="WxH", help="pixels, multiples of 16; default: as the run's previews")
    add("--frames", type=int, metavar="N", help="frames of a clip; default: as the run's previews")
    add("--fps", type=float, metavar="RATE", help="frame rate of a clip; default: as the run's previews")
    add("--steps", type=int, metavar="N", help="sampler steps; default: those of the run's previews")
    add("--cfg", type=float, metavar="SCALE", help="guidance scale; default: that of the run's previews")
    add("--guidance", type=float, default=0.0, help="distilled guidance; 0, the default, is the family's")
    samplers = ("euler", "heun", "midpoint", "dpmpp_2m")
    add("--sampler", choices=samplers, default="euler", help="default: euler")
    add("--seed", type=int, default=0, help="seed of the first image, then counting up; default: 0")
    add(
        "--lora",
        action="append",
        type=_lora,
        default=[],
        metavar="FILE[:STRENGTH]",
        help="LoRA to apply; repeat the option for more",
    )
    add("--weights", choices=("ema", "raw"), default="ema", help="weights of a run with EMA; default: ema")
    add("-o", "--out-dir", type=Path, default=Path("samples"), metavar="DIR", help="default: samples")
    add_storage(parser)
    args = parser.parse_args(arguments)
    source = _local(args)

    from flowloom.config.flow_format.read import read_config
    from flowloom.config.run import InferenceSection
    from flowloom.engine.preview import SamplingParams, clip_size
    from flowloom.engine.sample import SampleRequest
    from flowloom.engine.sample import sample as generate
    from flowloom.run.model_source import config_around

    config = read_config(args.config).config if args.config else config_around(source)
    usual = next(iter(config.previews if config else []), InferenceSection(cfg=4.0))
    width, height = args.size or usual.image_dim
    clip = {"num_frames": args.frames or usual.num_frames, "fps": args.fps or usual.fps}
    num_frames, fps = clip_size(usual.model_copy(update=clip), config) if config else (1, None)
    params = SamplingParams(
        width,
        height,
        steps=args.steps or usual.steps,
        cfg=usual.cfg if args.cfg is None else args.cfg,
        guidance=args.guidance,
        sampler=args.sampler,
        negative=args.negative,
        num_frames=num_frames,
        fps=fps,
    )
    request = SampleRequest(
        source, args.prompt, args.out_dir, params, config, args.lora, args.seed, args.weights
    )
    from flowloom.cli.new_run import print_notes

    for path in generate(request, lambda note: print_notes([note])):
        print(path)
    return OK


def export(arguments: list[str]) -> int:
    """`flowloom export SOURCE --format FORMAT -o FILE`; the exit status."""
    from flowloom.cli.main import command_parser

    parser = command_parser("export", "SOURCE --format FORMAT -o FILE [--strength S]")
    add = parser.add_argument
    about = "run directory, checkpoint or LoRA file; also a mirrored run or its checkpoint: s3://BUCKET/RUN"
    add("source", metavar="SOURCE", type=run_dir_or_url, help=about)
    about = "naming of the tensors; merged: the base model with the adapter merged into it"
    add("--format", required=True, choices=("comfy", "kohya", "diffusers", "merged"), help=about)
    add("-o", "--out", required=True, type=Path, metavar="FILE", help=".safetensors file to write")
    add("--strength", type=float, default=1.0, help="merged: strength of the adapter; default: 1")
    add(
        "--base",
        type=Path,
        metavar="FILE",
        help="base model, for merged and for DoRA; default: that of the run",
    )
    add("--weights", choices=("ema", "raw"), default="ema", help="weights of a run with EMA; default: ema")
    add_storage(parser)
    args = parser.parse_args(arguments)
    source = _local(args)

    from flowloom.engine.export import export_adapter, merge_adapter

    if args.format == "merged":
        notes = merge_adapter(source, args.base, args.out, args.strength, args.weights)
    else:
        notes, verified = export_adapter(source, args.format, args.out, args.weights, args.base)
        notes = [*notes, f"verified: {verified.line}"]
    from flowloom.cli.new_run import print_notes

    print_notes(notes)
    print(args.out)
    return OK


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"write a size such as 512x768, not {text}")
    size = int(width), int(height)
    if min(size) < 16 or any(side % 16 for side in size):
        raise argparse.ArgumentTypeError(f"both sides must be multiples of 16, not {text}")
    return size


def _lora(text: str) -> tuple[Path, float]:
    from flowloom.config.local_paths import local_path

    path, colon, strength = text.rpartition(":")
    try:
        return (local_path(path), float(strength)) if colon else (local_path(text), 1.0)
    except ValueError:
        return local_path(text), 1.0


def _local(args: argparse.Namespace) -> Path:
    """The source on this machine; of a mirrored run, a copy of its weights."""
    from flowloom.run.mirror.snapshot import snapshot
    from flowloom.storage.local_copy import is_url

    if not is_url(args.source):
        return Path(args.source)
    return snapshot(args.source, storage_of(args), lambda line: print(line, file=sys.stderr, flush=True))
