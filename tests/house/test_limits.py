"""Limits that ruff cannot measure: length of files, copies, catch-all handlers, names of packages."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "flowloom").rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
CATCH_ALL = {"Exception", "BaseException"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "misc", "base_utils", "shared"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def limit_of(path: Path) -> int:
    if path.name == "__init__.py":
        return 20
    return 500 if path.parent.name == "nn" else 400


def too_long(path: Path) -> bool:
    return len(path.read_text().splitlines()) > limit_of(path)


def catches_all(handler: ast.ExceptHandler) -> bool:
    """True if the handler catches every error; one that ends in a plain `raise` only cleans up."""
    last = handler.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False
    if handler.type is None:
        return True
    return any(isinstance(node, ast.Name) and node.id in CATCH_ALL for node in ast.walk(handler.type))


def catch_alls(source: str) -> list[int]:
    handlers = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler))
    return [handler.lineno for handler in handlers if catches_all(handler)]


def functions(source: str) -> list[tuple[int, str]]:
    """Line and shape (arguments and body, no name or docstring) of each function of 8 lines or more."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and node.end_lineno - body[0].lineno + 2 >= 8:
                shape = [ast.dump(node.args), *(ast.dump(statement) for statement in body)]
                found.append((node.lineno, "".join(shape)))
    return found


def test_files_stay_short():
    assert not [f"{relative(p)}: more than {limit_of(p)} lines" for p in PYTHON if too_long(p)]


def test_only_the_edge_of_the_process_catches_everything():
    edges = {"src/flowloom/engine/__main__.py", "src/flowloom/tasks/__main__.py"}
    edges |= {"src/flowloom/server/background.py"}  # repeats the studio's background work, one run at a time
    # Third-party trackers, one thread each: none may end a run.
    edges |= {"src/flowloom/engine/trackers.py"}
    edges |= {"src/flowloom/data/prefetch.py"}  # the reader of the items raises it
    found = {relative(p): lines for p in SOURCES if (lines := catch_alls(p.read_text()))}
    assert not {path: lines for path, lines in found.items() if path not in edges}


def test_no_two_functions_are_alike():
    places = defaultdict(list)
    for path in SOURCES:
        for line, shape in functions(path.read_text()):
            places[shape].append(f"{relative(path)}:{line}")
    assert not [copies for copies in places.values() if len(copies) > 1]


def test_packages_are_named_for_their_contents():
    assert not [relative(p) for p in PYTHON if {p.stem, p.parent.name} & VAGUE_NAMES]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("try:\n    f()\nexcept Exception:\n    pass\n", [3]),
        ("try:\n    f()\nexcept (OSError, BaseException):\n    g()\n", [3]),
        ("try:\n    f()\nexcept:\n    g()\n", [3]),
        ("try:\n    f()\nexcept BaseException:\n    clean()\n    raise\n", []),
        ("try:\n    f()\nexcept OSError:\n    g()\n", []),
    ],
)
def test_the_limit_on_handlers_sees_what_it_should(source: str, lines: list[int]):
    assert catch_alls(source) == lines


def test_the_limit_on_copies_sees_through_names_and_docstrings():
    body = "".join(f"    a{i} = x + {i}\n" for i in range(8))
    (_, first), (_, second) = functions(f'def f(x):\n    "Says f."\n{body}\ndef g(x):\n{body}')
    assert first == second
