"""The `flowloom` command: parses arguments, calls one function, prints its result.

Exit status: 0 for success, 2 for an error that the message explains.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Each command imports what it needs, so that `flowloom --help` starts at once.
    import argparse

    from flowloom.config.flow_format.read import LoadedConfig

OK, WRONG = 0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments`; the exit status.

    None: use the arguments of the process, and exit.
    """
    # Before torch is loaded. Its CPU threads wait for each other by spinning: on an idle machine that doubles
    # the speed, on a busy one they take the processors from each other, and steps take 40 times as long.
    if os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from flowloom.streams import leave, open_streams, settle_home

    settle_home()
    open_streams()
    if arguments is None:
        leave(_status(sys.argv[1:]))
    return _status(list(arguments))


def _status(arguments: list[str]) -> int:
    """Run a command, with one line for each kind of error; the exit status."""
    from flowloom.errors import FlowloomError
    from flowloom.streams import silence, system_error_text

    try:
        status = _run_command(arguments)
        sys.stdout.flush()  # report a failed write now, not when the interpreter exits
    except FlowloomError as error:
        return _complain(_message(error))
    except KeyboardInterrupt:
        return _complain("interrupted.")
    except BrokenPipeError:
        # The reader of our output, such as `head`, has exited.
        silence(sys.stdout)
        return OK
    except OSError as error:
        return _complain(system_error_text(error))
    return status


def _run_command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return OK
    if arguments[0] in ("-V", "--version"):
        import flowloom

        print(f"flowloom {flowloom.__version__}")
        return OK
    if arguments[0] not in COMMANDS:
        suggestion = _suggestion(arguments[0], COMMANDS)
        return _complain(f"there is no command {arguments[0]!r}.{suggestion} See 'flowloom --help'.")
    return COMMANDS[arguments[0]][1](arguments[1:])


def _overview() -> str:
    commands = "\n".join(f"  {name:<9} {line}" for name, (line, _) in COMMANDS.items())
    return (
        "usage: flowloom COMMAND ...\n\n"
        "Train Chroma and other flow-matching image models.\n\n"
        f"{commands}\n\n"
        "'flowloom COMMAND --help' shows the options of a command."
    )


def _train(arguments: list[str]) -> int:
    parser = command_parser(
        "train", "CONFIG.json [--name N] [--runs-dir DIR] [--dry-run] [--section.key VALUE ...]"
    )
    parser.add_argument(
        "config",
        type=Path,
        metavar="CONFIG.json",
        help="FLOW's training_config.json, or a configuration in our format",
    )
    parser.add_argument("--name", help="name of the run directory; default: the file's name and the time")
    parser.add_argument("--runs-dir", type=Path, metavar="DIR", default="runs", help="default: runs")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, and exit")
    if {"-h", "--help"} & set(arguments):
        from flowloom.config.keys import flags_help

        print(f"{parser.format_help()}\n{flags_help()}")
        return OK
    rest, overrides = config_flags(arguments, parser)
    args = parser.parse_args(rest)

    from flowloom.config.flow_format.read import read_config

    loaded = read_config(args.config, overrides, with_files=True)
    if args.dry_run:
        return _show_plan(loaded)

    from flowloom.cli.new_run import new_run

    run_dir = new_run(loaded, args.name, args.runs_dir)
    return run_engine_at(run_dir.path, loaded.secrets)


def run_engine_at(path: Path, secrets: dict[str, str]) -> int:
    os.environ.update(secrets)
    print(f"run        {path}", file=sys.stderr, flush=True)

    from flowloom.engine.__main__ import run_engine
    from flowloom.engine.progress import Progress
    from flowloom.run.directory import RunDir

    run_engine(RunDir(path), Progress(sys.stderr))
    return OK


def _up(arguments: list[str]) -> int:
    from flowloom.server.serve import USAGE, serve

    return serve(command_parser("up", USAGE), arguments)


def _schema(arguments: list[str]) -> int:
    parser = command_parser("schema", "[--check FILE]")
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="check that FILE has this schema, and print differences"
    )
    args = parser.parse_args(arguments)

    from flowloom.config.keys import schema_difference, schema_text

    if not args.check:
        print(schema_text(), end="")
        return OK
    difference = schema_difference(args.check)
    if not difference:
        return OK
    return _complain(f"{args.check} is not this version's schema:\n{difference}")


def _by(module: str, function: str) -> Callable[[list[str]], int]:
    """A command in another module, imported when it is called."""

    def command(arguments: list[str]) -> int:
        from importlib import import_module

        return getattr(import_module(f"flowloom.{module}"), function)(arguments)

    return command


def _doctor(arguments: list[str]) -> int:
    from flowloom.server.serve import default_home, port, serving_at

    parser = command_parser("doctor", "[--port N]")
    about = "port of a studio; default: that of the last studio started here, or 7860"
    parser.add_argument("--port", type=port, metavar="N", help=about)
    args = parser.parse_args(arguments)
    last_port, host = serving_at(default_home())
    from flowloom.engine.doctor import run_checks

    findings = run_checks(last_port if args.port is None else args.port, host)
    _print_table([("" if finding.is_ok else "!", finding.name, finding.text) for finding in findings])
    return OK if all(finding.is_ok for finding in findings) else WRONG


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "demo": (
        "train a small Chroma on OpenMoji images and generate a grid",
        _by("demo.command", "run"),
    ),
    "up": ("start the studio: web pages and HTTP API", _up),
    "train": ("train from a configuration file", _train),
    "resume": (
        "resume a run from its directory or a bucket",
        _by("cli.resume", "resume"),
    ),
    "launch": ("start, show or stop a job (Slurm, Ray, SkyPilot)", _by("cli.launch", "run")),
    "cache": ("encode a dataset into a cache; show, verify and prune the cache", _by("cli.cache", "run")),
    "sample": ("generate images from a run, a checkpoint or weights", _by("cli.sample", "sample")),
    "export": ("export a LoRA for ComfyUI, kohya or diffusers, or merge it", _by("cli.sample", "export")),
    "dataset": (
        "build, check, fix and export datasets in FLOW's JSONL",
        _by("cli.dataset", "dataset"),
    ),
    "tag": ("tag images with a WD14 tagger", _by("cli.tag", "tag")),
    "caption": ("caption images with BLIP, Florence-2 or a chat model", _by("cli.tag", "caption")),
    "preflight": ("check memory, disk space, time and data before a run", _by("cli.lint", "preflight")),
    "trainers": ("list trainers, and register other trainers", _by("cli.trainers", "trainers")),
    "schema": ("print the JSON schema of the configuration", _schema),
    "doctor": ("check this machine: devices, packages, trainers, secrets", _doctor),
}


def command_parser(command: str, usage: str) -> argparse.ArgumentParser:
    import argparse

    from flowloom.config.local_paths import with_local_paths

    about = f"{COMMANDS[command][0][:1].upper()}{COMMANDS[command][0][1:]}."
    return with_local_paths(
        argparse.ArgumentParser(
            f"flowloom {command}", f"flowloom {command} {usage}".rstrip(), about, allow_abbrev=False
        )
    )


def config_flags(
    arguments: list[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[tuple[str, str]]]:
    from flowloom.config.flags import split_flags
    from flowloom.config.run import RunConfig
    from flowloom.errors import RunError

    options = [option for action in parser._actions for option in action.option_strings]
    rest, overrides = split_flags(arguments, options)
    for name, _ in overrides:
        if "." not in name and name not in RunConfig.model_fields:
            hint = _suggestion(
                f"--{name}", [*options, *(f"--{section}" for section in RunConfig.model_fields)]
            )
            raise RunError(f"there is no option --{name}.{hint} See '{parser.prog} --help'.")
    return rest, overrides


def _show_plan(loaded: LoadedConfig) -> int:
    from flowloom.engine.estimate.plan import make_plan, verdict

    plan = make_plan(loaded)
    for title, rows in plan.sections:
        print(title)
        _print_table([("", *row) for row in rows])
        print()
    for heading, lines in (("notes", plan.notes), ("problems", [str(problem) for problem in plan.problems])):
        if lines:
            print(heading)
            print("".join(f"  {line}\n" for line in lines))
    print(verdict(not plan.problems))
    return WRONG if plan.problems else OK


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for *cells, last in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(f"{line}  {last}".rstrip())


def _message(error: Any) -> str:
    text = f"{error.source}: {error.problems[0]}" if len(getattr(error, "problems", ())) == 1 else str(error)
    return f"{text}\n{error.hint}".rstrip()


def _complain(message: str) -> int:
    print(f"flowloom: {message}", file=sys.stderr)
    return WRONG


def _suggestion(name: str, names: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""


if __name__ == "__main__":
    sys.exit(main())
