"""`flowloom launch`: start a run on a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from flowloom.run.directory import RunDir

OK = 0


def run(arguments: list[str]) -> int:
    """`flowloom launch slurm CONFIG.json|RUN_DIR [options] [--section.key VALUE ...]`; the exit status."""
    from flowloom.cli.main import command_parser, config_flags

    usage = "slurm CONFIG.json|RUN_DIR [--nodes N] [--gpus N] [--option NAME=VALUE ...] [--dry-run]"
    parser = command_parser("launch", f"{usage} [--section.key VALUE ...]")
    parser.add_argument("launcher", choices=["slurm"], help="the cluster's scheduler")
    parser.add_argument("source", type=Path, metavar="CONFIG.json|RUN_DIR", help="a run to start or resume")
    parser.add_argument("--name", help="name of the new run directory; default: the file's name and the time")
    parser.add_argument("--runs-dir", type=Path, metavar="DIR", default="runs", help="default: runs")
    parser.add_argument("--nodes", type=int, default=1, help="default: 1")
    parser.add_argument("--gpus", type=int, default=0, help="per node; default: 0, on the CPU")
    parser.add_argument("--processes", type=int, help="per node; default: one for each GPU, or one")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                        help="an option of sbatch, such as partition=gpu or time=12:00:00")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and submit nothing")
    rest, overrides = config_flags(arguments, parser)
    args = parser.parse_args(rest)
    for name in ("nodes", "processes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"argument --{name}: must be at least 1")
    if args.gpus < 0:
        parser.error("argument --gpus: must not be negative")
    if any("=" not in option for option in args.option):
        parser.error("argument --option: write NAME=VALUE")
    return _launch(args, overrides)


def _launch(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from flowloom.launchers.slurm import SlurmJob, script, submit

    options = dict(option.split("=", 1) for option in args.option)
    job = SlurmJob(args.nodes, args.gpus, args.processes, options)
    if args.dry_run:
        print(script(_planned(args, overrides), job), end="")
        return OK
    run_dir, secrets = _prepared(args, overrides)
    job_id = submit(run_dir, job, {**os.environ, **secrets})
    print(f"run        {run_dir.path}\njob        {job_id}")
    print(f"To stop it with a checkpoint: touch {run_dir.path}/control/stop")
    return OK


def _planned(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> RunDir:
    """The run directory that would be used; the configuration is read, and nothing is written."""
    from flowloom.config.flow_format.read import read_config
    from flowloom.run.directory import RunDir, default_name

    if args.source.is_dir():
        return RunDir.open(args.source)
    read_config(args.source, overrides)
    return RunDir(Path(args.runs_dir) / (args.name or default_name(args.source.stem)))


def _prepared(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> tuple[RunDir, dict[str, str]]:
    """The run directory, created or with changed settings, and the secrets of the configuration."""
    from flowloom.cli.new_run import new_run
    from flowloom.config.flow_format.read import read_config
    from flowloom.run.directory import RunDir
    from flowloom.run.resume import change_by_flags

    if args.source.is_dir():
        run_dir = RunDir.open(args.source)
        return run_dir, change_by_flags(run_dir, overrides).secrets
    loaded = read_config(args.source, overrides, with_files=True)
    return new_run(loaded, args.name, args.runs_dir), loaded.secrets
