"""Text that every machine has: the docstrings of the installed Python standard library, and questions about them.

It reads source files and never imports them, so that no module's side effects happen.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from connectors.errors import ConfigurationError

SHORTEST_TEXT = 40
"""Characters that must remain once the summary is gone: less says too little for anybody to find it by meaning."""

SHORTEST_QUERY_WORDS = 4
LONGEST_QUERY_CHARS = 200
MOST_DOCUMENTS = 3000
MOST_QUERIES = 400
FEWEST_DOCUMENTS = 500

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "__pycache__"}
_SIGNATURE = re.compile(r"^\S*\(.*\)(\s*->.*)?$")


@dataclass(frozen=True, slots=True)
class Docstring:
    """One document. `summary`, the docstring's first line or sentence, is no part of `text`: it is the question."""

    key: str
    kind: str
    summary: str
    text: str

    def to_value(self, *, note: str = "") -> bytes:
        """The record's value; a `note` makes it an edit, whose text differs."""
        text = f"{self.text}\n\n{note}" if note else self.text
        return orjson.dumps({"title": self.key, "text": text, "summary": self.summary, "kind": self.kind})


@dataclass(frozen=True, slots=True)
class Question:
    """A known-item query: `key` is the one document it is about."""

    query: str
    key: str


def collect(stdlib: Path | None = None, most: int = MOST_DOCUMENTS) -> list[Docstring]:
    """Docstrings in an order that depends on nothing but their keys, at most `most` of them.

    Raises ConfigurationError where the standard library's source is not installed.
    """
    folder = stdlib or Path(sysconfig.get_path("stdlib"))
    found: dict[str, Docstring] = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).parts
        if not _LEFT_OUT.intersection(parts):
            found.update((document.key, document) for document in _in_file(file, _module_name(parts)))
    copies = Counter(document.text for document in found.values())
    # an inherited docstring stands at several places with the same words: nobody could tell which one was meant
    unlike = [document for document in found.values() if copies[document.text] == 1]
    if len(unlike) < min(most, FEWEST_DOCUMENTS):
        raise ConfigurationError(
            f"only {len(unlike)} docstrings in {folder}: the source of Python's standard library is not there",
            next_step="use a Python that was installed with it, e.g. make PYTHON=/usr/bin/python3 demo",
        )
    return sorted(unlike, key=lambda document: _shuffled(document.key))[:most]


def questions(documents: list[Docstring], most: int = MOST_QUERIES) -> list[Question]:
    """The summaries that name one document: long enough, said of no other document, and not within its own text."""
    said = Counter(document.summary.lower() for document in documents)
    fit = [
        Question(document.summary, document.key)
        for document in documents
        if said[document.summary.lower()] == 1
        and len(document.summary.split()) >= SHORTEST_QUERY_WORDS
        and len(document.summary) <= LONGEST_QUERY_CHARS
        and document.summary.lower() not in document.text.lower()
    ]
    return fit[:most]


def _shuffled(key: str) -> bytes:
    """The same order on every machine, and neighbours of one module apart."""
    return hashlib.sha256(key.encode()).digest()


def _module_name(parts: tuple[str, ...]) -> str:
    return ".".join((*parts[:-1], parts[-1].removesuffix(".py"))).removesuffix(".__init__")


def _in_file(file: Path, module: str) -> Iterator[Docstring]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in the library's strings are its own affair
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # a template or a broken symlink is no source file
    yield from _in_node(tree, module)


def _in_node(node: Documented, name: str) -> Iterator[Docstring]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring and (document := _document(name, _kind(node), docstring)) is not None:
        yield document
    if isinstance(node, ast.Module | ast.ClassDef):  # what is inside a function has no name to be called by
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _in_node(child, f"{name}.{child.name}")


def _kind(node: ast.AST) -> str:
    if isinstance(node, ast.Module):
        return "module"
    return "class" if isinstance(node, ast.ClassDef) else "function"


def _document(key: str, kind: str, docstring: str) -> Docstring | None:
    """None where too little remains beside the summary."""
    lines = inspect.cleandoc(docstring).splitlines()
    while lines and (not lines[0].strip() or _SIGNATURE.match(lines[0].strip())):
        lines.pop(0)
    first = next((at for at, line in enumerate(lines) if not line.strip()), len(lines))
    summary = lines[0].strip() if lines else ""
    if first > 1 and summary and summary[-1] not in ".!?:":
        summary = " ".join(line.strip() for line in lines[:first])  # a summary that goes on over several lines
        rest = lines[first:]
    else:
        rest = lines[1:]
    text = "\n".join(rest).strip()
    if not summary or len(text) < SHORTEST_TEXT:
        return None
    return Docstring(key, kind, summary, text)
