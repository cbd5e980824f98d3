"""Write docs/reference, tables and trees of docs; with `--check`, name stale pages (exit status 1)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import benchmarks.__main__ as benchmarks
from docs import tree
from flowloom import errors
from flowloom.config.flow_format.keys import FLOW_KEYS, Fate, Foreign, Moved, Replaced, Secret, Tracked
from flowloom.config.keys import Key, config_keys
from flowloom.run import events

ROOT = Path(__file__).parents[1]
NOTE = "<!-- Written by `python -m docs.generate`: change the code, then run it again. -->\n"


def config_page() -> str:
    """Every key of a configuration, section by section."""
    lines = [
        f"# Configuration\n\n{NOTE}",
        "One JSON object with these sections. Every key has a default, so a file holds only what differs.",
        "On the command line a key is a flag: `--training.lr 1e-4`. The sections up to `lora` are FLOW's;",
        "`N` stands for a position in a list. Each of `extra_inference_config` has the keys of `inference`.",
    ]
    section = None
    for key in config_keys().values():
        if key.is_section or key.name.startswith("extra_inference_config."):
            continue
        place = key.name.rpartition(".")[0]
        if place != section:
            section = place
            lines += ["", *_section_head(place), "| key | value | default | |", "|---|---|---|---|"]
        lines.append(_row(key))
    return "\n".join(lines) + "\n"


def _section_head(place: str) -> Iterator[str]:
    yield f"## {place}\n"
    if place in config_keys() and config_keys()[place].help:
        yield config_keys()[place].help + "\n"


def _row(key: Key) -> str:
    kinds = f" ({', '.join(key.kinds)})" if key.kinds and not key.name.endswith(".kind") else ""
    value = key.type_text.replace("|", " \\| ") + (f", {key.unit}" if key.unit else "")
    return f"| `{key.name.rpartition('.')[2]}`{kinds} | {value} | `{key.default_text}` | {key.help} |"


def events_page() -> str:
    """Every kind of event with its fields."""
    lines = [f"# Events\n\n{NOTE}", _doc(events), "", "| kind | meaning | fields |", "|---|---|---|"]
    for event in get_args(get_args(events.RunEvent)[0]):
        hints = get_type_hints(event)
        (kind,) = get_args(hints.pop("kind"))
        fields = ", ".join(
            f"`{name}` {_type_text(hint)}"
            for name, hint in hints.items()
            if name not in events.Header.__annotations__
        )
        lines.append(f"| `{kind}` | {_doc(event)} | {fields} |")
    return "\n".join(lines) + "\n"


def _type_text(hint: object) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    return text.replace("typing.", "").replace("None", "null").replace("|", "\\|")


def errors_page() -> str:
    """The tree of errors with their descriptions."""
    tree = inspect.getdoc(errors) or ""
    lines = [f"# Errors\n\n{NOTE}", "```", tree, "```", ""]
    lines += [f"- `{name}`: {_doc(error)}" for name, error in _error_classes()]
    return "\n".join(lines) + "\n"


def _error_classes() -> Iterator[tuple[str, type]]:
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.FlowloomError):
            yield name, error


def _doc(thing: object) -> str:
    return " ".join((inspect.getdoc(thing) or "").split())


def flow_keys_page() -> str:
    """FLOW's keys that have no field of the same name here, with their replacements."""
    lines = [
        f"# FLOW's other keys\n\n{NOTE}",
        "Keys of FLOW that [the configuration](config.md) does not have under the same name.",
        "",
        "| key | here |",
        "|---|---|",
    ]
    lines += [f"| `{key}` | {_fate(fate)} |" for key, fate in FLOW_KEYS.items()]
    return "\n".join(lines) + "\n"


def _fate(fate: Fate) -> str:
    match fate:
        case Moved(to, difference):
            return f"now `{to}`" + (f". {difference}" if difference else "")
        case Tracked(kind, setting):
            return f"`{setting}` of a logger of kind `{kind}`"
        case Secret(name):
            return f"passed as the environment variable `{name}`, never written"
        case Replaced(by):
            return by
        case Foreign(trainer):
            return f"belongs to FLOW's {trainer} trainer: rejected"


def benchmarks_page() -> str:
    """The page of benchmarks with the newest saved results between its markers."""
    before, start, rest = (ROOT / "docs/benchmarks.md").read_text().partition("<!-- benchmarks -->\n")
    _, stop, after = rest.partition("<!-- /benchmarks -->")
    rows = benchmarks.table(benchmarks.FOLDER / "results")
    return f"{before}{start}{rows}\n{stop}{after}"


PAGES = {
    "docs/reference/config.md": config_page,
    "docs/reference/events.md": events_page,
    "docs/reference/errors.md": errors_page,
    "docs/reference/flow-keys.md": flow_keys_page,
    "docs/benchmarks.md": benchmarks_page,
    "docs/architecture.md": tree.page,
}


def stale() -> list[str]:
    """Names of the pages that differ from the code."""
    return [
        name
        for name, page in PAGES.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text() != page()
    ]


def main() -> int:
    """Write the pages, or with --check name those that are stale; returns the exit status."""
    names = stale()
    if "--check" in sys.argv:
        names = [name for name in names if name != "docs/architecture.md"]  # compared by path: tests/house
        print("\n".join(f"{name} is stale: run python -m docs.generate" for name in names))
        return int(bool(names))
    for name in names:
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(PAGES[name]())
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
