"""Plain words: strings, docstrings, comments, names and documents use the terms of docs/glossary.md.

Strings of tests are data and may have any words.

`python tests/house/test_words.py PATH ...` lists the words to replace in files or folders, allowed or not.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
Text = tuple[int, str]  # the line where it begins, and a string, docstring or paragraph

ALLOWED = {
    "docs/glossary.md": "lists the words to avoid",
    "src/flowloom/models/qwen_text.py": "has the texts that a model was trained with",
}
"""Files and folders that may contain words to avoid, with the reason."""

IMPERSONAL = "name the person or program, or use the passive"
CONTEXT = {
    r"\b(?:if|when|where|what|which|as|because|before|after|that) one (?:may|can|must|should)\b"
    r"|\b(?:if|when|where|what|as|because|before|after) one "
    r"(?:chooses|wants|sees|needs|likes|types|looks|finds|knows|reads|makes|edits|names|asks)\b": IMPERSONAL,
    r"\bas (?:it is|they are)(?=[.,;:)]|$| and\b| or\b)": "unchanged",
    r"\btak(?:e|es|ing) turns\b": "alternate",
    r"\b(?:is|are|was|were) whole\b(?! numbers?)": "complete",
    r"\bmade up\b(?! of)": "generated",
    r"\b(?:answers?|answered) (?:with )?\d{3}\b": "return",
    r"\bdraws? (?:an? |the |its |no |\d+ )?(?:images?|samples?|previews?|prompts?)\b": "generate",
    r"\b(?:images?|samples?|previews?) (?:that )?(?:is|are|was|were|be) drawn\b": "generated",
    r"^(?:What|Whether) (?!to )(?![^?]*\?)": "begin with a verb or noun: Return ..., True if ..., The ...",
}


def table_words() -> dict[str, str]:
    """Patterns of the glossary's words to avoid, with what to use instead."""
    _, _, table = GLOSSARY.read_text().partition("## Words to avoid")
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[4:] if row.startswith("|")]
    return {rf"\b(?:{'|'.join(words.split(', '))})\b": instead for words, instead in rows}


LEGITIMATE = re.compile(
    r"\blies? (?:between|in \[|in \(|within|above|below|on the line)"
    r"|\blay out\b|\bgo(?:es)? on (?:top|the|a|one)\b"
)
"""Uses of words to avoid that are right: a number lies between two others."""


def hits(text: str) -> list[tuple[str, str]]:
    """Words of a text that have to be replaced, each with what to use instead."""
    plain = LEGITIMATE.sub("", text)
    sentences = re.split(r"(?<=[.!?:])\s+", plain)
    return [
        (match.group().strip(), instead)
        for pattern, instead in PATTERNS
        for sentence in sentences
        for match in pattern.finditer(sentence)
    ]


PATTERNS = [
    (re.compile(pattern, 0 if pattern.startswith("^") else re.IGNORECASE), instead)
    for pattern, instead in (table_words() | CONTEXT).items()
]


def is_prose(text: str) -> bool:
    """True for sentences and labels; False for keys, paths and addresses."""
    return (" " in text.strip() or text[:1].isupper()) and not text.startswith(
        ("@/", "./", "../", "/", "http")
    )


def python_texts(path: Path) -> Iterator[Text]:
    """Strings, docstrings by paragraph, comments, and the names of the module, its classes and functions."""
    source = path.read_text()
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    parts = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    if relative(path).startswith("tests/"):
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        nodes = [n for n in nodes if n in docstrings or not isinstance(n, ast.Constant | ast.JoinedStr)]
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            texts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(texts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield from ((node.lineno, " ".join(text.split())) for text in node.value.split("\n\n"))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, plain_name(node.name)
    yield 1, plain_name(path.stem)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#: ")


def plain_name(name: str) -> str:
    """The words of an identifier as a label: `is_runDir` is `Is run dir`, `test_x` is `X`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name.removeprefix("test_")).strip().lower().capitalize()


TYPESCRIPT = re.compile(
    r"//[^\n]*|/\*.*?\*/"
    r'|"(?P<double>(?:[^"\\\n]|\\.)*)"'
    r"|`(?P<template>(?:[^`\\]|\\.)*)`"
    r"|(?<!=)>(?P<text>[^<>{}=;`\"(][^<>{}=;`\"]*)(?=[<{])"
    r"|\}(?!\s*(?:export|interface|type|function|class)\b)(?P<after>[^<>{}=;`\"():]+)(?=[<{])",
    re.DOTALL,
)


def typescript_texts(path: Path) -> Iterator[Text]:
    """Strings and the text between tags."""
    source = path.read_text()
    for match in TYPESCRIPT.finditer(source):
        text = next((group for group in match.groups() if group), None)
        if text is not None:
            yield source.count("\n", 0, match.start()) + 1, re.sub(r"\$?\{[^}]*\}", "{}", text).strip()


def markdown_texts(path: Path) -> Iterator[Text]:
    """Paragraphs, headings and cells without code, addresses and comments."""
    source = re.sub(r"^```.*?^```", lambda block: "\n" * block.group().count("\n"), path.read_text(),
                    flags=re.MULTILINE | re.DOTALL)  # fmt: skip
    source = re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", lambda block: "\n" * block.group().count("\n"), source,
                    flags=re.DOTALL)  # fmt: skip
    source = re.sub(r"`[^`\n]*`|\]\([^)]*\)|<!--.*?-->", "", source)
    line = 1
    for block in re.split(r"(\n\s*\n|\n(?=[|#-]))", source):
        for cell in block.split(" | ") if block.lstrip().startswith("|") else [block]:
            yield line, " ".join(cell.strip("#|- \n").split())
        line += block.count("\n")


READERS = {".py": python_texts, ".ts": typescript_texts, ".tsx": typescript_texts, ".md": markdown_texts}
GENERATED = ("docs/reference/", "frontend/src/lib/api/schema.ts")  # they repeat texts of the code


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def files() -> list[Path]:
    python = ["src/flowloom/**/*.py", "tests/**/*.py"]
    patterns = ["*.md", "docs/**/*.md", "benchmarks/*.*", *python, "frontend/src/**/*.ts*"]
    paths = (path for pattern in patterns for path in ROOT.glob(pattern))
    return sorted(path for path in paths if not relative(path).startswith(GENERATED))


def findings(path: Path) -> list[str]:
    """One line for each word to replace in a file."""
    return [
        f"{relative(path)}:{line}: {word!r}: use {instead!r} in: {text[:90]!r}"
        for line, text in READERS[path.suffix](path)
        if is_prose(text)
        for word, instead in hits(text)
    ]


def test_texts_use_the_terms_of_the_glossary():
    checked = [path for path in files() if not relative(path).startswith(tuple(ALLOWED))]
    assert not [finding for path in checked for finding in findings(path)]


@pytest.mark.parametrize(
    "text",
    [
        "Mend what is marked.",
        "A picture of a data set",
        "what one chooses by name",
        "Only a run that runs can be told that.",
        "the run goes on",
        "The file is kept as it is.",
        "What was sent cannot be used.",
        "It draws no samples",
        "a kind of its own",
        "The checkpoint is whole.",
    ],
)
def test_the_check_of_words_sees_what_it_should(text: str):
    assert hits(text)


@pytest.mark.parametrize(
    "text",
    [
        "one of the images",
        "The noise level lies between 0 and 1.",
        "if one of them fails",
        "as it is written",
        "a list made up of rows",
        "What is this?",
        "The accelerated trainer recommends a recommended value.",
        "its own process",
    ],
)
def test_the_check_of_words_has_no_false_alarms(text: str):
    assert not hits(text)


def test_texts_are_found_in_every_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    sources = {
        "a.py": '"""A wish.\n\nA keeper."""\n\n\ndef is_told(x):\n    raise ValueError(f"{x} lacks b")  # made anew\n',  # noqa: E501
        "a.tsx": 'import { told } from "@/lib/told"; // told\nf("Tells b"); <p>The run\'s {x} shelf is</p>',
        "tests/test_a.py": 'def test_what_is():\n    """A wish."""\n    assert f("a keeper")  # made anew\n',
        "a.md": "# A picture\n\nThe `picture` is\n\n```\na wish\n```\n\n- is told\n",
    }
    expected = {
        "a.py": ["anew", "keeper", "lacks", "told", "wish"],
        "a.tsx": ["Tells", "shelf"],
        "tests/test_a.py": ["What", "anew", "wish"],
        "a.md": ["picture", "told"],
    }
    for name, source in sources.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        assert sorted(re.findall(r": '(\w+)': use", "\n".join(findings(path)))) == expected[name]


if __name__ == "__main__":
    for place in map(Path, sys.argv[1:]):
        paths = [path for path in files() if path.is_relative_to(place.resolve())]
        print("\n".join(finding for path in paths for finding in findings(path)))
