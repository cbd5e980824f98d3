"""`flowloom demo`: parse the arguments and run the demo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flowloom.config.local_paths import with_local_paths


def run(arguments: list[str]) -> int:
    """Run the demo with command-line `arguments`; returns the exit status."""
    from flowloom.server.serve import default_home, minutes

    parser = argparse.ArgumentParser(
        "flowloom demo",
        "flowloom demo [--minutes N] [--runs-dir DIR]",
        "Trains a small Chroma on OpenMoji images and generates a grid of images.",
        allow_abbrev=False,
    )
    about = "of training and generating together; default: 10"
    parser.add_argument("--minutes", type=minutes, default=10.0, metavar="N", help=about)
    about = "default: the runs of the studio that 'flowloom up' opens, usually runs/ in this folder"
    with_local_paths(parser)
    parser.add_argument("--runs-dir", metavar="DIR", type=Path, help=about)
    options = parser.parse_args(arguments)

    from flowloom.demo.run import Terminal, demo
    from flowloom.engine.progress import Progress

    progress = Progress(sys.stdout)
    runs_dir = options.runs_dir or default_home() / "runs"
    demo(runs_dir, options.minutes, Terminal(progress, progress.say, progress.move))
    return 0
