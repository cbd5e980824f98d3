"""`flowloom launch`: start a run on a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flowloom.config.local_paths import with_local_paths

if TYPE_CHECKING:
    import argparse

    from flowloom.run.directory import RunDir

OK = 0


def run(words: list[str]) -> int:
    """`flowloom launch slurm CONFIG.json|RUN_DIR [options] [--section.key VALUE ...]`; the exit status."""
    import argparse

    from flowloom.config.flags import split_flags

    parser = with_local_paths(
        argparse.ArgumentParser(
            "flowloom launch",
            "flowloom launch slurm CONFIG.json|RUN_DIR [--nodes N] [--gpus N] [--option NAME=VALUE ...] "
            "[--dry-run] [--section.key VALUE ...]",
            "Start or resume a run on a Slurm cluster, whose nodes share the run directory's disk.",
            allow_abbrev=False,
        )
    )
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
    own = [option for action in parser._actions for option in action.option_strings]
    rest, overrides = split_flags(words, own)
    asked = parser.parse_args(rest)
    for name in ("nodes", "processes"):
        if getattr(asked, name) is not None and getattr(asked, name) < 1:
            parser.error(f"argument --{name}: must be at least 1")
    if asked.gpus < 0:
        parser.error("argument --gpus: must not be negative")
    if any("=" not in option for option in asked.option):
        parser.error("argument --option: write NAME=VALUE")
    return _launch(asked, overrides)


def _launch(asked: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from flowloom.launchers.slurm import SlurmJob, script, submit

    options = dict(option.split("=", 1) for option in asked.option)
    job = SlurmJob(asked.nodes, asked.gpus, asked.processes, options)
    if asked.dry_run:
        from flowloom.run.directory import RunDir, default_name

        is_run = asked.source.is_dir()
        name = asked.name or default_name(asked.source.stem)
        print(script(RunDir(asked.source if is_run else Path(asked.runs_dir) / name), job), end="")
        return OK
    run_dir, secrets = _prepared(asked, overrides)
    job_id = submit(run_dir, job, {**os.environ, **secrets})
    print(f"run        {run_dir.path}\njob        {job_id}")
    print(f"To stop it with a checkpoint: touch {run_dir.path}/control/stop")
    return OK


def _prepared(asked: argparse.Namespace, overrides: list[tuple[str, str]]) -> tuple[RunDir, dict[str, str]]:
    """The run directory, created or with changed settings, and the secrets of the configuration."""
    from flowloom.run.directory import RunDir, default_name

    if asked.source.is_dir():
        from flowloom.run.resume import change_by_flags

        run_dir = RunDir.open(asked.source)
        return run_dir, change_by_flags(run_dir, overrides).secrets
    from flowloom.config.flow_format.read import read_config
    from flowloom.model_library.requirements import refuse_unfit_models

    loaded = read_config(asked.source, overrides, with_files=True)
    refuse_unfit_models(loaded.config, loaded.source)
    run_dir = RunDir.create(asked.name or default_name(loaded.source.stem), asked.runs_dir)
    run_dir.write_run(loaded.config, str(loaded.source), loaded.notes)
    return run_dir, loaded.secrets
