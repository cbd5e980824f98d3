"""`flowloom launch`: start a run on a cluster, show its job, stop it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from flowloom.launchers.base import Job
    from flowloom.run.directory import RunDir

OK = 0
_USAGE = (
    "--on NAME CONFIG.json|RUN_DIR [--nodes N] [--gpus N] [--option NAME=VALUE ...] [--dry-run] "
    "[--section.key VALUE ...]\n       flowloom launch status RUN_DIR [--json]\n"
    "       flowloom launch stop RUN_DIR [--now]"
)


def run(arguments: list[str]) -> int:
    """`flowloom launch --on NAME SOURCE ...`, `launch status|stop RUN_DIR`; the exit status."""
    from flowloom.launchers import LAUNCHERS

    match arguments:
        case ["status", *rest]:
            return _status(rest)
        case ["stop", *rest]:
            return _stop(rest)
        case [name, *rest] if name in LAUNCHERS:
            return _start(["--on", name, *rest])
        case _:
            return _start(arguments)


def _start(arguments: list[str]) -> int:
    from flowloom.cli.main import command_parser, config_flags
    from flowloom.launchers import LAUNCHERS
    from flowloom.launchers.base import JOIN_S

    parser = command_parser("launch", _USAGE)
    add = parser.add_argument
    add("--on", choices=list(LAUNCHERS), required=True, metavar="NAME", help=f"one of {', '.join(LAUNCHERS)}")
    add("source", type=Path, metavar="CONFIG.json|RUN_DIR", help="a run to start or resume")
    add("--name", help="name of the new run directory; default: the file's name and the time")
    add("--runs-dir", type=Path, metavar="DIR", default="runs", help="default: runs")
    add("--nodes", type=int, default=1, help="default: 1")
    add("--gpus", type=int, default=0, help="per node; default: 0, on the CPU")
    add("--processes", type=int, help="per node; default: one for each GPU, or one")
    about = "an option of the launcher, such as partition=gpu or time=12:00:00 for Slurm"
    add("--option", action="append", default=[], metavar="NAME=VALUE", help=about)
    add("--python", metavar="FILE", help="Python with Flowloom on the nodes; default: this one")
    about = f"seconds for all nodes to join; default: {JOIN_S}"
    add("--join-timeout", type=int, default=JOIN_S, metavar="S", help=about)
    add("--dry-run", action="store_true", help="print what would be submitted and submit nothing")
    rest, overrides = config_flags(arguments, parser)
    args = parser.parse_args(rest)
    for name in ("nodes", "processes", "join_timeout"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least 1")
    if args.gpus < 0:
        parser.error("argument --gpus: must not be negative")
    if any("=" not in option for option in args.option):
        parser.error("argument --option: write NAME=VALUE")
    return _launch(args, overrides)


def _launch(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from flowloom.launchers import LAUNCHERS
    from flowloom.launchers.jobs import submit

    launcher, job = LAUNCHERS[args.on], _job(args)
    if args.dry_run:
        run_dir, config = _planned(args, overrides)
        for text in launcher.files(run_dir, job, config).values():
            print(text, end="")
        return OK
    run_dir, secrets = _prepared(args, overrides)
    job_id = submit(run_dir, launcher, job, secrets).job_id
    print(f"run        {run_dir.path}\njob        {job_id}")
    print(f"To stop it with a checkpoint: flowloom launch stop {run_dir.path}")
    return OK


def _job(args: argparse.Namespace) -> Job:
    import sys

    from flowloom.launchers.base import Job

    options = dict(option.split("=", 1) for option in args.option)
    python = args.python or sys.executable
    return Job(args.nodes, args.gpus, args.processes, options, python, args.join_timeout)


def _status(arguments: list[str]) -> int:
    from flowloom.cli.main import command_parser
    from flowloom.errors import RunError
    from flowloom.launchers.jobs import read_record, status_of
    from flowloom.run.directory import RunDir
    from flowloom.run.events import read_events

    parser = command_parser("launch", "status RUN_DIR [--json]")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--json", action="store_true", help="print an object")
    args = parser.parse_args(arguments)
    run_dir = RunDir.open(args.run_dir)
    record = read_record(run_dir)
    if record is None:
        raise RunError(f"{run_dir.path} was not started by 'flowloom launch'.")
    status = status_of(run_dir, record)
    newest = list(read_events(run_dir.events_jsonl))[-1:]
    shown = {
        "launcher": record.launcher,
        "job": record.job_id,
        "state": status.state,
        "detail": status.detail,
        "event": newest[0]["kind"] if newest else None,
    }
    print(json.dumps(shown) if args.json else "\n".join(f"{name:<10} {shown[name] or '-'}" for name in shown))
    return OK


def _stop(arguments: list[str]) -> int:
    from flowloom.cli.main import command_parser
    from flowloom.launchers.jobs import stop
    from flowloom.run.directory import RunDir

    parser = command_parser("launch", "stop RUN_DIR [--now]")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--now", action="store_true", help="end the job without a checkpoint")
    args = parser.parse_args(arguments)
    before = stop(RunDir.open(args.run_dir), save=not args.now)
    match before.state:
        case "ended":
            print(f"The job had ended: {before.detail}.")
        case "pending":
            print("The job had not started: it is cancelled.")
        case _ if args.now:
            print("The job is cancelled.")
        case _:
            print("The run saves a checkpoint after this step, and stops.")
    return OK


def _planned(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> tuple[RunDir, Any]:
    """The run directory that would be used, and its configuration; nothing is written."""
    from flowloom.config.flow_format.read import read_config
    from flowloom.run.directory import RunDir, default_name

    if args.source.is_dir():
        run_dir = RunDir.open(args.source)
        return run_dir, run_dir.read_run()["config"]
    config = read_config(args.source, overrides).config.model_dump(mode="json")
    return RunDir(Path(args.runs_dir) / (args.name or default_name(args.source.stem))), config


def _prepared(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> tuple[RunDir, dict[str, str]]:
    """The run directory, created or with changed settings, and the secrets of the configuration."""
    from flowloom.cli.new_run import new_run
    from flowloom.config.flow_format.read import read_config
    from flowloom.launchers.base import is_described
    from flowloom.launchers.jobs import require_not_submitted
    from flowloom.run.directory import RunDir
    from flowloom.run.resume import change_by_flags

    if args.source.is_dir():
        run_dir = RunDir.open(args.source)
        require_not_submitted(run_dir)
        if is_described(run_dir):
            _require_shared_disk(args.on, overrides)
            return run_dir, {}
        return run_dir, change_by_flags(run_dir, overrides).secrets
    loaded = read_config(args.source, overrides, with_files=True)
    return new_run(loaded, args.name, args.runs_dir), loaded.secrets


def _require_shared_disk(launcher: str, overrides: list[tuple[str, str]]) -> None:
    """Check that a run of tagging can be launched.

    Raises:
        RunError: its machines have no disk in common with this one, or settings would change.
    """
    from flowloom.errors import RunError
    from flowloom.launchers import LAUNCHERS

    if not LAUNCHERS[launcher].shares_disk:
        raise RunError(
            f"--on {launcher}: tagging needs a disk that all machines share. Use slurm, ray or local."
        )
    if overrides:
        raise RunError(f"--{overrides[0][0]}: a run of tagging keeps its settings. Create another one.")
