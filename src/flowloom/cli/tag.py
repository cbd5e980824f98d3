"""`flowloom tag ...` and `flowloom caption ...`: a separate run, followed in the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowloom.config.local_paths import require_local, with_local_paths

if TYPE_CHECKING:
    import argparse

    from flowloom.run.directory import RunDir
    from flowloom.tasks.base import FormTask

OK, WRONG = 0, 2
SHOWN = 10
SECONDS_BETWEEN_POLLS = 0.2
NAMED_OTHERWISE = ("repo", "model_path", "data_path", "storage")
"""Fields whose flags have other names."""
RESTORE = "restore-captions"


def tag(arguments: list[str]) -> int:
    """`flowloom tag FOLDER|FILE.jsonl [--model NAME|DIR] [options]`; the exit status."""
    return _verb("tag", arguments)


def caption(arguments: list[str]) -> int:
    """`flowloom caption FOLDER|FILE.jsonl [--model NAME|DIR] [options]`; the exit status."""
    return _verb("caption", arguments)


def _verb(name: str, arguments: list[str]) -> int:
    from flowloom.run.directory import RunDir
    from flowloom.tasks import ALL

    task = ALL[name]
    parser = _parser(task)
    args = vars(parser.parse_args(arguments))
    if args["resume"]:
        return _watch(task, RunDir.open(args["resume"]))
    if args["undo"]:
        run_dir = RunDir.open(args["undo"])
        described = run_dir.read_run()["config"]
        undo = {"data_path": described.get("data_path", ""), "run_path": str(run_dir.path.absolute())}
        undo["storage"] = _storage(args, described.get("storage") or {})
        return _watch(ALL[RESTORE], _prepared(ALL[RESTORE], undo, args))
    if not args["data_path"]:
        parser.error("give a folder of images or a JSONL, or a run with --resume or --undo")
    run_dir = _prepared(task, _config(task, args), args)
    if args["create_only"]:
        print(run_dir.path)
        return OK
    return _watch(task, run_dir)


def _parser(task: FormTask[Any]) -> argparse.ArgumentParser:
    import argparse

    from flowloom.cli.lint import add_storage

    parser = argparse.ArgumentParser(
        f"flowloom {task.name}",
        f"flowloom {task.name} FOLDER|FILE.jsonl|s3://... [--model NAME|DIR] [--preview N] [options]",
        f"{task.title}: write caption files, or the rows of FILE.jsonl. Try a few images with --preview.",
        allow_abbrev=False,
    )
    add = with_local_paths(parser).add_argument
    properties = task.schema()["properties"]
    add(
        "data_path",
        type=_folder_or_bucket,
        metavar="FOLDER|FILE.jsonl|s3://...",
        nargs="?",
        help=properties["data_path"]["description"],
    )
    default = properties["repo"]["default"]
    add(
        "--model",
        metavar="NAME|DIR",
        help=f"model on the hub, or a folder with its files; default: {default}",
    )
    add("--resume", type=Path, metavar="RUN_DIR", help="resume a run that was stopped or killed")
    add("--undo", type=Path, metavar="RUN_DIR", help="restore the captions that a run changed")
    add("--name", help="name of the run directory; default: the command and the time")
    add("--runs-dir", type=Path, metavar="DIR", default="runs", help="folder of the runs; default: runs")
    about = "create the run directory, print it and exit, to start it by torchrun or launch"
    add("--create-only", action="store_true", help=about)
    for name, field in properties.items():
        if name not in NAMED_OTHERWISE:
            _add_field(parser, name, field)
    add_storage(parser)
    return parser


def _add_field(parser: argparse.ArgumentParser, name: str, field: dict[str, Any]) -> None:
    import argparse

    flag, about = f"--{name.replace('_', '-')}", field["description"].replace("%", "%%")
    kind = field.get("type")
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
    shown = field["default"] if field.get("default") not in ("", [], {}) else None
    options["help"] = about if shown is None or kind == "boolean" else f"{about} Default: {shown}"
    if kind == "boolean":
        options["action"] = argparse.BooleanOptionalAction
    elif "enum" in field:
        options["choices"] = field["enum"]
    elif kind == "array":
        options |= {"type": _list, "metavar": "A,B"}
    elif kind == "object":
        options |= {"type": _pairs, "metavar": "OLD=NEW,..."}
    else:
        options |= {"type": {"integer": int, "number": float}.get(str(kind), str), "metavar": "X"}
    parser.add_argument(flag, **options)


def _folder_or_bucket(text: str) -> str:
    from flowloom.config.local_paths import local_path
    from flowloom.tasks.tagging.config import is_bucket

    return text if is_bucket(text) else str(local_path(text))


def _storage(args: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Access to a bucket: the options, over `base`."""
    from flowloom.cli.lint import storage_of
    from flowloom.storage.base import StorageSection

    return storage_of(Namespace(**args), StorageSection.model_validate(base)).model_dump()


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _pairs(text: str) -> dict[str, str]:
    return {old.strip(): new.strip() for old, _, new in (part.partition("=") for part in _list(text))}


def _config(task: FormTask[Any], args: dict[str, Any]) -> dict[str, Any]:
    from flowloom.tasks.tagging.config import is_bucket

    config = {name: value for name, value in args.items() if name in task.config_type.model_fields}
    config["storage"] = _storage(args, {})
    for name in ("data_path", "image_folder_path", "models_dir"):
        if config.get(name) and not (name == "data_path" and is_bucket(config[name])):
            require_local(config[name])
            config[name] = str(Path(config[name]).expanduser().absolute())
    if Path(config["data_path"]).is_file() and not config.get("image_folder_path"):
        from flowloom.datasets.build.rows import image_folder

        config["image_folder_path"] = str(image_folder(Path(config["data_path"]), None))
    model = args["model"]
    if model and Path(model).expanduser().is_dir():
        config["model_path"] = str(Path(model).expanduser().absolute())
    elif model:
        config["repo"] = model
    return config


def _prepared(task: FormTask[Any], config: dict[str, Any], args: dict[str, Any]) -> RunDir:
    from flowloom.errors import ConfigError
    from flowloom.run.directory import RunDir, default_name

    problems = task.check(config)
    if problems:
        raise ConfigError(f"flowloom {task.name}", problems)
    run_dir = RunDir.create(args["name"] or default_name(task.name), args["runs_dir"])
    task.prepare(config, run_dir, "the command line")
    return run_dir


def _watch(task: FormTask[Any], run_dir: RunDir) -> int:
    """Run the task in a separate process, like the studio, and print its progress."""
    from flowloom.run.events import read_events

    print(f"run        {run_dir.path}", file=sys.stderr, flush=True)
    next_seq = max((event["seq"] + 1 for event in read_events(run_dir.events_jsonl)), default=0)
    with run_dir.log_txt.open("ab") as log:
        process = subprocess.Popen(task.command(run_dir, resume=True).argv, stdout=log, stderr=log)
        while True:
            is_over = process.poll() is not None
            for event in read_events(run_dir.events_jsonl, next_seq):
                next_seq = event["seq"] + 1
                _print_event(event)
            if is_over:
                break
            try:
                time.sleep(SECONDS_BETWEEN_POLLS)
            except KeyboardInterrupt:
                # The process gets the signal too, and ends after the current batch.
                print("\nstopping after this batch ...", file=sys.stderr)
    result = run_dir.path / "result.json"
    if process.returncode == OK and result.is_file():
        _print_result(json.loads(result.read_text(encoding="utf-8")))
    elif process.returncode != OK:
        print(f"\nflowloom: see {run_dir.log_txt}", file=sys.stderr)
    return OK if process.returncode == OK else WRONG


def _print_event(event: dict[str, Any]) -> None:
    if event["kind"] == "progress" and sys.stderr.isatty():
        rate = f", {event['samples_per_s']:.1f}/s" if event["samples_per_s"] else ""
        sys.stderr.write(f"\r{event['step']:,} of {event['max_steps']:,}{rate}\x1b[K")
        sys.stderr.flush()
    elif event["kind"] == "phase":
        print(f"\r{event['name']}\x1b[K" if sys.stderr.isatty() else event["name"], file=sys.stderr)
    elif event["kind"] == "stopped":
        print("\nstopped: continue with --resume", file=sys.stderr)
    elif event["kind"] in ("warning", "failed"):
        print(f"\nflowloom: {event['message']}", file=sys.stderr)


def _print_result(result: dict[str, Any]) -> None:
    for image in result.get("preview", []):
        for text in image["after"]:
            print(f"{image['image']}: {text}{'  (has a caption, unchanged)' * image['is_kept']}")
    for name, value in result.items():
        if name.startswith("num_"):
            print(f"{name.removeprefix('num_'):<10} {value:,}")
    for image in result.get("unusable", [])[:SHOWN]:
        print(f"unusable   {image['image']}: {image['reason']}", file=sys.stderr)
