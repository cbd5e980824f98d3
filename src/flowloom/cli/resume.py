"""`flowloom resume`: continue a run from its directory, or from its mirror in a bucket."""

from __future__ import annotations

import sys
from pathlib import Path


def resume(arguments: list[str]) -> int:
    """`flowloom resume RUN_DIR | URL ...`; the exit status.

    Raises:
        ConfigError, RunError, SourceError: the run cannot be resumed here.
    """
    from flowloom.cli.main import OK, command_parser, config_flags, run_engine_at

    parser = command_parser("resume", "RUN_DIR | s3://BUCKET/RUN [--section.key VALUE ...]")
    about = "run directory, such as runs/my-run, or a run in a bucket (mirror.url)"
    parser.add_argument("run_dir", type=run_dir_or_url, metavar="RUN_DIR", help=about)
    about = "of a run in a bucket: folder of the new run directory; default: runs"
    parser.add_argument("--runs-dir", type=Path, metavar="DIR", default="runs", help=about)
    parser.add_argument("--name", help="of a run in a bucket: name of the new run directory")
    about = "of a run in a bucket: download it and exit, to start it by torchrun or launch"
    parser.add_argument("--download-only", action="store_true", help=about)
    parser.epilog = "Flags change the settings of the resumed run: --limits.max_steps 5000."
    rest, overrides = config_flags(arguments, parser)
    args = parser.parse_args(rest)

    from flowloom.run.directory import RunDir
    from flowloom.run.resume import change_by_flags

    if "://" in args.run_dir:
        from flowloom.run.mirror.download import restore

        run_dir, loaded = restore(args.run_dir, args.runs_dir, args.name, overrides, _print_note)
        if args.download_only:
            print(run_dir.path)
            return OK
    else:
        run_dir = RunDir.open(args.run_dir)
        loaded = change_by_flags(run_dir, overrides)
    return run_engine_at(run_dir.path, loaded.secrets)


def run_dir_or_url(text: str) -> str:
    from flowloom.config.local_paths import local_path
    from flowloom.storage.base import scheme_of

    return text if scheme_of(text) in ("s3", "gs", "az") else str(local_path(text))


def _print_note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
