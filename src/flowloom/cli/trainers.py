"""`flowloom trainers ...`: list trainers, and register checkouts of other trainers on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowloom.config.local_paths import with_local_paths

OK, WRONG = 0, 2


def trainers(arguments: list[str]) -> int:
    """`flowloom trainers [list | install NAME [--path DIR [--python FILE]] [--ref REV]]`; the exit status.

    Raises:
        ConfigError, RunError: the checkout does not exist, or is something else.
    """
    args = _parser().parse_args(arguments or ["list"])
    return _list() if args.action == "list" else _install(args.name, args.path, args.python, args.ref)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "flowloom trainers",
        description="List trainers, and register checkouts of other trainers.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list the trainers and their checkouts")
    install = actions.add_parser("install", help="register a checkout, so that the studio may run it")
    with_local_paths(install)
    install.add_argument("name", choices=["kohya", "flow-upstream"])
    install.add_argument(
        "--path", type=Path, metavar="DIR", help="folder of the checkout; kohya: without it, one is cloned"
    )
    install.add_argument(
        "--python",
        type=Path,
        metavar="FILE",
        help="Python with its packages; default: that of its .venv, or ours",
    )
    install.add_argument("--ref", help="kohya, if cloned: commit, tag or branch")
    return parser


def _list() -> int:
    from flowloom.trainers import ALL
    from flowloom.trainers.missing_packages import states

    for trainer in ALL.values():
        built_in: list[tuple[None, str, list[str]]] = [(None, "part of Flowloom", [])]
        for _, about, missing in built_in if trainer.writes_events else states(trainer.name):
            print(f"{trainer.name:14} {trainer.title:16} {about}")
            _print_missing(missing)
    return OK


def _print_missing(missing: list[str]) -> int:
    if missing:
        print(f"  missing: {', '.join(missing)}")
    return WRONG if missing else OK


def _install(name: str, path: Path | None, python: Path | None, ref: str | None) -> int:
    if name == "kohya":
        return _install_kohya(path, python, ref)

    from flowloom.errors import RunError
    from flowloom.trainers.checkouts import add_checkout
    from flowloom.trainers.flow_upstream.dataclasses import names_of_trainers
    from flowloom.trainers.missing_packages import missing_packages

    names = names_of_trainers(path.expanduser()) if path else []
    if path is None or not names:
        raise RunError(f"{path}: not a checkout of lodestone-rock/flow: no trainer in src/trainer.")
    checkout = add_checkout(name, path, python)
    print(f"{name}: {checkout.path}, with {checkout.python}\ntrainers: {', '.join(names)}")
    return _print_missing(missing_packages(name, checkout))


def _install_kohya(path: Path | None, python: Path | None, ref: str | None) -> int:
    from flowloom.trainers.checkouts import add_checkout
    from flowloom.trainers.kohya.install import install
    from flowloom.trainers.missing_packages import missing_packages

    checkout = add_checkout("kohya", path, python) if path else install(ref, lambda step: print(f"  {step}"))
    print(f"kohya: {checkout.path}, with {checkout.python}")
    return _print_missing(missing_packages("kohya", checkout))
