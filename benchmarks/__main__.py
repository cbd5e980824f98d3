"""`python -m benchmarks NAME`: measure one claim and report whether it holds.

Results are compared before anything is timed.

A benchmark is a module in this folder with a docstring and `run() -> Measured`; its name is written with
dashes. `--save` appends the result to results/NAME.jsonl with machine, commit and date; `--table` prints the
newest result of each benchmark.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.timing import Measured

FOLDER = Path(__file__).parent


def descriptions(folder: Path = FOLDER) -> dict[str, str]:
    """First docstring line of every benchmark (a module with a function `run`) by name; imports none."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def machine() -> str:
    """The processor, cores, memory and load, and the accelerator where there is one."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    load = os.getloadavg()[0]
    return (
        f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB{gpu}; torch {torch.__version__}; load {load:.1f}"
    )


def commit() -> str:
    """The commit of the work tree, with `+` where tracked source differs from it."""
    git = ["git", "-C", str(FOLDER)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", "../src"], check=False).returncode
    return head.stdout.strip() + ("+" if changed else "")


def measure(name: str, package: str = "benchmarks") -> dict[str, Any]:
    """Run one benchmark and return its record."""
    measured: Measured = importlib.import_module(f"{package}.{name.replace('-', '_')}").run()
    return {
        "name": name,
        **asdict(measured),
        "passed": measured.passed,
        "machine": machine(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def line(record: dict[str, Any]) -> str:
    """One line for people."""
    if record["ratio"] is None:
        return f"{record['name']:<16} skipped: {record['detail'].get('skipped', 'not measured')}"
    verdict = "passed" if record["passed"] else "FAILED" if record["correct"] else "WRONG RESULTS"
    detail = ", ".join(f"{key} {_short(value)}" for key, value in record["detail"].items())
    figures = f"{_short(record['ratio'])} (target {_short(record['target'])})"
    return f"{record['name']:<16} {figures} {verdict}: {detail}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def save(record: dict[str, Any], results: Path) -> None:
    """Append the record to its benchmark's results."""
    results.mkdir(exist_ok=True)
    with (results / f"{record['name']}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def table(results: Path, folder: Path = FOLDER) -> str:
    """A Markdown table of the newest saved result of each benchmark."""
    rows = ["| benchmark | compares | measured | target | result |", "|---|---|---|---|---|"]
    for name, description in descriptions(folder).items():
        path = results / f"{name}.jsonl"
        if path.exists():
            record = json.loads(path.read_text().splitlines()[-1])
            verdict = "passed" if record["passed"] else "missed"
            cells = [_short(record["ratio"]), _short(record["target"]), f"{verdict}, {record['date']}"]
            rows.append(
                f"| [`{name}`](../benchmarks/results/{name}.jsonl) | {description} | {' | '.join(cells)} |"
            )
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None, package: str = "benchmarks", folder: Path = FOLDER) -> int:
    """Run what the command line asks for; returns 1 when a benchmark failed, else 0."""
    known = descriptions(folder)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(known)}")
    parser.add_argument("--all", action="store_true", help="run every benchmark")
    parser.add_argument("--gpu", action="store_true", help="run those that need a GPU, in about 8 minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each benchmark")
    parser.add_argument("--save", action="store_true", help="append the results to benchmarks/results")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and exit")
    parser.add_argument("--table", action="store_true", help="print the saved results as a table and exit")
    given = parser.parse_args(arguments)
    if given.list or given.table:
        listing = "\n".join(f"{name:<16} {text}" for name, text in known.items())
        print(table(folder / "results", folder) if given.table else listing)
        return 0
    if given.gpu:
        given.names += [name for name, text in known.items() if text.endswith("(GPU).")]
    unknown = set(given.names) - known.keys()
    if unknown or not (given.names or given.all):
        parser.error(
            f"no benchmark {', '.join(sorted(unknown)) or 'was named'}; there are {', '.join(known)}"
        )
    failed = False
    for name in known if given.all else given.names:
        record = measure(name, package)
        print(json.dumps(record) if given.json else line(record), flush=True)
        if given.save and record["ratio"] is not None:
            save(record, folder / "results")
        failed |= record["passed"] is False
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
