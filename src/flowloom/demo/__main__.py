"""`python -m flowloom.demo RUN_DIR`: create the demo's images and models if they are missing, then train.

The process becomes the engine's: signals, locks and exit status are those of every run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from flowloom.config.run import RunConfig
from flowloom.run.directory import RunDir
from flowloom.tasks.demo import SIZE


def make_what_it_needs(config: RunConfig) -> None:
    """Create images, encoders and an untrained base model where `config` expects them."""
    from flowloom.demo.images import build
    from flowloom.demo.network import make_models

    build(Path(config.dataloader.image_folder_path), SIZE)
    make_models(Path(config.model.chroma_path).parent)


def main() -> None:
    """Run as described in the module's docstring."""
    run_dir = RunDir.open(sys.argv[1])
    make_what_it_needs(run_dir.read_config())
    os.execv(sys.executable, [sys.executable, "-m", "flowloom.engine", str(run_dir.path)])


if __name__ == "__main__":
    main()
