"""No committed file names the machine where it was written."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = {".py", ".md", ".toml", ".json", ".jsonl", ".lock", ".sh", ".txt", ".cfg", ".yml", ".yaml", ""}
ABSOLUTE = re.compile(r"(?<![\w.~/$}*:-])/(?:work|root|home|tmp|opt|mnt|Users)/[\w.-]")
PRIVATE = re.compile(
    r"--(?:extra-)?index-url|--find-links|\.pypirc|://[\w.-]*(?:mirror|artifactory|nexus|internal)[\w.-]*"
)
SECRET = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{36})\b")


def committed() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.suffix in TEXT and path.is_file() and path != Path(__file__)]


def finds(pattern: re.Pattern[str], text: str) -> list[str]:
    return [line.strip()[:120] for line in text.splitlines() if pattern.search(line)]


@pytest.mark.parametrize("pattern", [ABSOLUTE, PRIVATE, SECRET], ids=["absolute path", "index", "secret"])
def test_no_committed_file_names_the_machine(pattern: re.Pattern[str]):
    found = {path.relative_to(ROOT).as_posix(): lines for path in committed()
             if (lines := finds(pattern, path.read_text()))}  # fmt: skip
    assert not found


@pytest.mark.parametrize(
    "line", ["open('/home/me/a.png')", "cd /work/x", "pip install --extra-index-url x", "hf_" + "a" * 34]
)
def test_the_check_sees_what_it_should(line: str):
    assert any(finds(pattern, line) for pattern in (ABSOLUTE, PRIVATE, SECRET))
