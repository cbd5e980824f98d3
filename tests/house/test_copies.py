"""No code is copied: two stretches of eight lines differ by more than names and values."""

import ast
import io
import keyword
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "flowloom").rglob("*.py"))
LINES, TOKENS, SHAPES = 8, 40, 5
"""A copy has so many lines, tokens and different lines; less is a list of arguments or plain calls."""
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
Line = tuple[int, tuple[str, ...]]  # its number and the shapes of its tokens

ALLOWED = {
    ("loggers/aim.py", "loggers/wandb.py"): "two trackers with the same calls",
}
"""Pairs of files that may be alike, with the reason."""


def shape(token: tokenize.TokenInfo) -> str:
    """A token without its name or value."""
    if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
        return "name"
    return "value" if token.type in {tokenize.NUMBER, tokenize.STRING} else token.string


def bodies(source: str) -> Iterator[tuple[int, int]]:
    """First and last lines of outermost functions, without docstrings."""
    for node in ast.iter_child_nodes(ast.parse(source)):
        children = ast.iter_child_nodes(node) if isinstance(node, ast.ClassDef) else [node]
        for child in children:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                has_docstring = ast.get_docstring(child) is not None
                first = child.body[0].end_lineno if has_docstring else child.lineno - 1
                yield (first or 0) + 1, child.end_lineno or 0


def lines(source: str) -> Iterator[Line]:
    """Lines of functions as shapes; a gap in the numbers between functions keeps them apart."""
    wanted = {line for first, last in bodies(source) for line in range(first, last + 1)}
    shapes = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.start[0] in wanted and token.type not in SKIPPED:
            shapes[token.start[0]].append(shape(token))
    yield from ((number, tuple(tokens)) for number, tokens in shapes.items())


def stretches(source: str) -> Iterator[tuple[int, tuple[tuple[str, ...], ...]]]:
    """Stretches of lines that are long enough to count as a copy, each with its first line."""
    rows = list(lines(source))
    for start in range(len(rows) - LINES + 1):
        numbers, shapes = zip(*rows[start : start + LINES], strict=True)
        if sum(map(len, shapes)) >= TOKENS and len(set(shapes)) >= SHAPES:
            yield numbers[0], shapes


def copies(sources: dict[str, str]) -> dict[tuple[str, str], str]:
    """Pairs of files that are alike somewhere, each with the first such place."""
    seen: dict[tuple, tuple[str, int]] = {}
    found: dict[tuple[str, str], str] = {}
    for name, source in sources.items():
        for line, stretch in stretches(source):
            other, other_line = seen.setdefault(stretch, (name, line))
            if other != name or line - other_line >= LINES:
                found.setdefault((other, name), f"{other}:{other_line} = {name}:{line}")
    return found


def test_no_code_is_copied():
    package = ROOT / "src" / "flowloom"
    found = copies({path.relative_to(package).as_posix(): path.read_text() for path in SOURCES})
    assert not [place for pair, place in found.items() if pair not in ALLOWED]


BODY = """
def {0}({1}: int, rows: list) -> dict:
    {1} += 1
    count = {{}}
    for row in rows:
        if row.size > {2}:
            count[row.name] = row.size * {1}
        elif not row.size:
            raise ValueError("{0}")
    return count
"""


@pytest.mark.parametrize(
    ("second", "is_copy"),
    [
        (BODY.format("g", "y", 7), True),
        (BODY.format("g", "y", 7).replace("elif not", "elif"), False),
        ("class A:" + BODY.format("g", "y", 7).replace("\n", "\n    "), True),
        (BODY.format("g", "y", 7).replace("    count = {}\n", "    count = {}  # why\n\n"), True),
        ("def g(x):\n" + "    x.name(1, 2, 3, 4)\n" * 20, False),
    ],
    ids=["names and values", "another condition", "in a class", "comments", "plain calls"],
)
def test_the_check_of_copies_sees_what_it_should(second: str, is_copy: bool):
    assert bool(copies({"a.py": BODY.format("f", "x", 3), "b.py": second})) == is_copy
