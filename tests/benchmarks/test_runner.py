"""The runner: one object a benchmark, kept with its machine and commit, judged by results before speed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import descriptions, main, table
from benchmarks.timing import Measured, interleaved

BENCHMARK = '''"""{doc}"""
from benchmarks.timing import Measured

def run():
    return Measured(ratio={ratio}, target=2.0, correct={correct}, detail={{"our_s": 0.25}})
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of four benchmarks and a module that is none."""
    folder = tmp_path / "fake_benchmarks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "helpers_of_theirs.py").write_text("def walk(): ...\n")
    cases = {"fast": (3.0, True), "too_slow": (1.5, True), "wrong": (9.0, False), "no_gpu": (None, True)}
    for name, (ratio, correct) in cases.items():
        text = BENCHMARK.format(doc=f"What {name} measures.", ratio=ratio, correct=correct)
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("fake_benchmarks")]:
        del sys.modules[name]


def run(folder: Path, *arguments: str) -> int:
    return main(list(arguments), package="fake_benchmarks", folder=folder)


def test_json_has_what_a_claim_needs(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(folder, "fast", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    wanted = {"name", "ratio", "target", "passed", "correct", "machine", "commit", "date", "detail"}
    assert wanted <= record.keys()
    assert (record["name"], record["ratio"], record["passed"]) == ("fast", 3.0, True)
    assert "cores" in record["machine"]


@pytest.mark.parametrize(
    ("name", "status", "verdict"),
    [
        ("fast", 0, "passed"),
        ("too-slow", 1, "FAILED"),
        ("wrong", 1, "WRONG RESULTS"),
        ("no-gpu", 0, "skipped"),
    ],
)
def test_the_verdict_is_printed_and_returned(folder: Path, capsys, name: str, status: int, verdict: str):
    assert run(folder, name) == status
    assert verdict in capsys.readouterr().out


def test_all_runs_every_benchmark_and_fails_with_one(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(folder, "--all") == 1
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_kept_results_append_and_the_newest_stands_in_the_table(folder: Path):
    run(folder, "fast", "no-gpu", "--save")
    run(folder, "fast", "--save")
    assert len((folder / "results" / "fast.jsonl").read_text().splitlines()) == 2
    assert not (folder / "results" / "no-gpu.jsonl").exists(), "what was not measured is not kept"
    rows = table(folder / "results", folder).splitlines()[2:]
    assert len(rows) == 1
    assert "What fast measures." in rows[0]


def test_an_unknown_name_lists_the_known_ones(folder: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        run(folder, "fsat")
    assert stopped.value.code == 2
    assert "fast, no-gpu, too-slow, wrong" in capsys.readouterr().err


def test_every_benchmark_of_ours_says_what_it_measures():
    assert all(text.endswith((".", ":")) for text in descriptions().values())


@pytest.mark.parametrize(
    ("ratio", "higher", "passed"),
    [(2, True, True), (1.9, True, False), (2, False, True), (2.1, False, False)],
)
def test_a_target_is_a_floor_or_a_ceiling(ratio: float, higher: bool, passed: bool):
    assert Measured(ratio, 2.0, correct=True, higher_is_better=higher).passed is passed


def test_turns_alternate_and_warm_ups_do_not_count():
    order = []
    interleaved(lambda: order.append("ours"), lambda: order.append("rival"), repeats=2, warm_up=1)
    assert order == ["ours", "rival"] * 3
