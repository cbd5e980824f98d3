"""docs/architecture.md agrees with the folders and with the import contract."""

import re
from pathlib import Path

import pytest

from docs import tree

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
NAMED = re.compile(r"(?:[\w-]+/)+[\w-]+\.(?:py|tsx?)|\b(?:errors|schema)\.py")


def test_the_tree_has_every_file():
    written, current = tree.paths(TEXT), tree.paths(tree.tree())
    assert not current - written, "run python -m docs.generate"
    assert not written - current, "run python -m docs.generate"


def test_the_layers_are_those_of_pyproject():
    assert tree.layers() in TEXT


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/extend.md", "CONTRIBUTING.md"])
def test_files_that_the_text_names_exist(page: str):
    prose = (
        (ROOT / page).read_text().partition("## Files")[0].replace("hooks/use-", "frontend/src/hooks/use-")
    )
    places = [ROOT, ROOT / "src" / "flowloom", ROOT / "frontend"]
    made_up = re.compile(r"sgd|/name\.py|<name>|test_samplers")
    names = {name for name in NAMED.findall(prose) if not made_up.search(name)}
    assert names
    assert not [name for name in names if not any((place / name).exists() for place in places)]


def test_the_tree_is_read_with_its_folders():
    text = "### a/b\nWhat b is.\n```text\nx.py    does x.\ny.py\n```\n### c\n```text\nz.tsx  Z\n```"
    assert tree.paths(text) == {"a/b/x.py", "a/b/y.py", "c/z.tsx"}
