"""The documents are true: commands exist, JSON loads, the reference is current, credits are complete."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flowloom.config.flow_format.read import read_config
from flowloom.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
LOOM_VERBS = {"demo", "test", "lint", "fix", "dev", "setup", "lock"}


def blocks(language: str) -> list:
    return [
        pytest.param(body, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, (kind, body) in enumerate(BLOCK.findall(page.read_text()))
        if kind == language
    ]


@pytest.fixture(scope="module")
def verbs() -> set[str]:
    """Verbs that `flowloom --help` lists."""
    command = [sys.executable, "-m", "flowloom.cli.main", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^  +([a-z]+)\b", text, re.MULTILINE))


def unknown(line: str, verbs: set[str]) -> str | None:
    """The part of a shell line that does not exist: a verb, a benchmark, a file; None if all exist."""
    words = line.split("#")[0].split()
    while words and re.match(r"\w+=", words[0]):
        words.pop(0)
    if not words or words[0] in {"cd", "git", "pip"}:
        return None
    if words[0] in {"./loom", "flowloom", ".venv/bin/flowloom"}:
        known = verbs | {"--help"} | (LOOM_VERBS if words[0] == "./loom" else set())
        return None if words[1] in known else f"verb {words[1]}"
    if words[0] in {"python", ".venv/bin/python"}:
        return unknown_script(words[1:])
    if words[0] == "torchrun":
        return unknown_script(words[words.index("-m") :])
    return f"command {words[0]}"


def unknown_script(words: list[str]) -> str | None:
    if words[0] != "-m":
        return None if (ROOT / words[0]).exists() else f"file {words[0]}"
    if words[1] == "benchmarks" and len(words) > 2 and not words[2].startswith("-"):
        path = ROOT / "benchmarks" / f"{words[2].replace('-', '_')}.py"
        return None if words[2].isupper() or path.exists() else f"benchmark {words[2]}"
    paths = [folder / words[1].replace(".", "/") for folder in (ROOT, ROOT / "src")]
    exists = any(path.is_dir() or path.with_suffix(".py").exists() for path in paths)
    return None if exists else f"module {words[1]}"


@pytest.mark.parametrize("body", blocks("bash"))
def test_commands_in_the_documents_exist(body: str, verbs: set[str]):
    assert not [problem for line in body.splitlines() if (problem := unknown(line, verbs))]


@pytest.mark.parametrize("body", blocks("json"))
def test_configurations_in_the_documents_load(body: str, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(body)
    assert read_config(path, []).config


def test_the_optimizer_in_the_documents_works():
    (body,) = [
        block for kind, block in BLOCK.findall((ROOT / "docs/extend.md").read_text()) if kind == "python"
    ]
    use = "import torch\nSgd().build([{'params': [torch.ones(2, requires_grad=True)]}], lr=0.1).step()\n"
    subprocess.run([sys.executable, "-c", f"{body}\n{use}"], check=True)


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.json")), ids=lambda path: path.name)
def test_examples_load(path: Path):
    assert read_config(path, []).config


def configurations_to_copy() -> list:
    (readme,) = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    examples = sorted(ROOT.glob("examples/*.json"))
    return [pytest.param(readme, id="README"), *(pytest.param(p.read_text(), id=p.name) for p in examples)]


@pytest.mark.parametrize("body", configurations_to_copy())
def test_a_copied_configuration_has_all_keys_and_only_its_files_are_missing(body: str, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(body)
    with pytest.raises(ConfigError) as caught:
        read_config(path, with_files=True)
    assert {problem.code for problem in caught.value.problems} == {"not-found"}, caught.value


@pytest.mark.parametrize("body", blocks("jsonl"))
def test_rows_in_the_documents_parse(body: str):
    assert all({"filename", "caption_or_tags"} <= json.loads(line).keys() for line in body.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page: Path):
    assert not [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]


def test_the_reference_is_current():
    command = [sys.executable, "-m", "docs.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_direct_dependency_is_credited():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    direct = [*project["dependencies"], *extras]
    names = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in direct}
    rows = re.findall(r"^\| \[?([\w.-]+)", (ROOT / "THIRD_PARTY.md").read_text(), re.MULTILINE)
    packages = json.loads((ROOT / "frontend" / "package.json").read_text())
    web = {name.rpartition("/")[2] for name in packages["dependencies"] | packages["devDependencies"]}
    assert not names - set(rows) - {"flowloom"}
    assert not set(rows) - names - web - {"Package", "OpenMoji", "IBM"}, "credited, but no longer used"


def test_adrs_have_their_four_parts():
    parts = ["## Context", "## Decision", "## Consequences", "## When to revisit"]
    records = sorted(ROOT.glob("docs/adr/[0-9]*.md"))
    assert records
    assert not [path.name for path in records if [p for p in parts if p not in path.read_text()]]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("./loom demo --minutes 1", None),
        ("./loom fly", "verb fly"),
        ("flowloom trian x.json", "verb trian"),
        ("python -m benchmarks nothing-here", "benchmark nothing-here"),
        ("python nothing.py", "file nothing.py"),
        ("rm -rf x", "command rm"),
    ],
)
def test_the_check_of_commands_sees_what_it_should(line: str, problem: str | None):
    assert unknown(line, {"train"}) == problem
