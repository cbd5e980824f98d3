"""`flowloom demo`: parses, and calls the demo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flowloom.config.local_paths import with_local_paths


def run(words: list[str]) -> int:
    """Train and draw as the command line says; the exit status."""
    from flowloom.server.serve import default_home, minutes

    parser = argparse.ArgumentParser(
        "flowloom demo",
        "flowloom demo [--minutes N] [--runs-dir DIR]",
        "Trains a small Chroma on OpenMoji images and draws a grid of samples.",
        allow_abbrev=False,
    )
    about = "of training and drawing together; default: 10"
    parser.add_argument("--minutes", type=minutes, default=10.0, metavar="N", help=about)
    about = "default: runs of the studio that 'flowloom up' would open, mostly runs in this folder"
    with_local_paths(parser)
    parser.add_argument("--runs-dir", metavar="DIR", type=Path, help=about)
    asked = parser.parse_args(words)

    from flowloom.demo.run import Terminal, demo
    from flowloom.engine.progress import Progress

    progress = Progress(sys.stdout)
    runs_dir = asked.runs_dir or default_home() / "runs"
    demo(runs_dir, asked.minutes, Terminal(progress, progress.say, progress.move))
    return 0
