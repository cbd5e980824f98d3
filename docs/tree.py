"""The file tree and the layers of docs/architecture.md."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
TREES = {"src/flowloom": "*.py", "frontend/src": "*.[tc]s*"}
LEFT_OUT = {"__init__.py", "schema.ts"}
_COMMENT = re.compile(r"/\*\*(.*?)\*/|^// (.*)$", re.DOTALL | re.MULTILINE)
_PATH = re.compile(r"^### (\S+)$|^(\S+\.(?:py|tsx?|css))(?:  |$)", re.MULTILINE)


def layers() -> str:
    """The import contract of pyproject.toml, upper layers first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    names = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return "```text\n" + "\n".join(name.replace("flowloom.", "") for name in names) + "\n```"


def tree() -> str:
    """Every folder of source with its files, one line each."""
    return "\n".join(line for top, pattern in TREES.items() for line in _folders(ROOT / top, pattern)).strip()


def _folders(top: Path, pattern: str) -> Iterator[str]:
    for folder in [top, *sorted(path for path in top.rglob("*") if path.is_dir())]:
        files = sorted(path for path in folder.glob(pattern) if path.name not in LEFT_OUT)
        if not files:
            continue
        about = _about(folder / "__init__.py") if (folder / "__init__.py").exists() else ""
        width = max(len(path.name) for path in files) + 2
        yield f"\n### {folder.relative_to(ROOT).as_posix()}\n{about}\n```text".replace("\n\n```", "\n```")
        yield from (f"{path.name:<{width}}{_about(path)}".rstrip() for path in files)
        yield "```"


def _about(path: Path) -> str:
    """First sentence of a module's docstring, or of the first comment in TypeScript."""
    source = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(source)) or ""
    else:
        match = _COMMENT.search(source)
        text = re.sub(r"\s*\n\s*\*?\s*", " ", next(filter(None, match.groups()), "")) if match else ""
    line = text.strip().partition("\n")[0]
    return re.split(r"(?<=[a-z)`]\.)\s", line)[0][:110]


def paths(text: str) -> set[str]:
    """Paths of all files that a tree names."""
    found, folder = set[str](), ""
    for match in _PATH.finditer(text):
        folder = match[1] or folder
        if match[2]:
            found.add(f"{folder}/{match[2]}")
    return found


def page() -> str:
    """docs/architecture.md with the current layers and tree."""
    text = PAGE.read_text()
    for name, content in (("layers", layers()), ("tree", tree())):
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, stop, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}{start}{content}\n{stop}{after}"
    return text
