"""Docstrings to documents and questions: what is taken, what is left out, and that no question copies its answer."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from connectors.errors import ConfigurationError
from streams.demo.documents import SHORTEST_TEXT, Docstring, collect, questions

LONG = "It goes on with more than enough words for anybody to find it again."
SOURCE = f'''
"""Tools for boats.

{LONG} One.
"""
raise RuntimeError("a module that is imported would fail here")

class Boat:
    """A thing that floats on water
    and carries people over it

    {LONG} Two.
    """

    def row(self):
        """row(self) -> int

        Move the boat with oars.
        {LONG} Three.
        """
        def inner():
            """Nobody can call this by its name.

            {LONG} Four.
            """

    def stop(self):
        """Stop.

        Too short.
        """
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "boats").mkdir()
    (tmp_path / "boats" / "__init__.py").write_text(SOURCE)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "boats.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def (")
    return tmp_path


def test_modules_classes_and_methods_by_their_names(library: Path) -> None:
    found = {document.key: document for document in collect(library, most=3)}
    assert found.keys() == {"boats", "boats.Boat", "boats.Boat.row"}
    assert found["boats"] == Docstring("boats", "module", "Tools for boats.", f"{LONG} One.")
    assert found["boats.Boat"].summary == "A thing that floats on water and carries people over it"
    assert found["boats.Boat"].text == f"{LONG} Two."
    assert found["boats.Boat.row"].summary == "Move the boat with oars."
    assert found["boats.Boat.row"].text == f"{LONG} Three."


def test_words_that_stand_at_two_places_are_left_out(library: Path) -> None:
    (library / "copy.py").write_text(f'"""Copied.\n\n{LONG} One.\n"""')
    assert {document.key for document in collect(library, most=2)} == {"boats.Boat", "boats.Boat.row"}


def test_a_python_without_its_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="only 0 docstrings"):
        collect(tmp_path)


def test_an_edit_changes_the_text_only() -> None:
    document = Docstring("a.b", "function", "Do it.", "As told.")
    plain, edited = orjson.loads(document.to_value()), orjson.loads(document.to_value(note="Edited."))
    assert plain == {"title": "a.b", "text": "As told.", "summary": "Do it.", "kind": "function"}
    assert edited == {**plain, "text": "As told.\n\nEdited."}


def test_questions_name_one_document_and_are_no_copy_of_it() -> None:
    documents = [
        Docstring("good", "function", "Find the deepest lake of all.", "Text."),
        Docstring("twin1", "function", "Find the highest hill of all.", "Text."),
        Docstring("twin2", "function", "find the highest hill of all.", "Text."),
        Docstring("copied", "function", "Find the longest river of all.", "Why find the longest river of all.?"),
        Docstring("short", "function", "Find it.", "Text."),
        Docstring("long", "function", "Find " + "and find " * 40, "Text."),
    ]
    assert [(question.key, question.query) for question in questions(documents)] == [
        ("good", "Find the deepest lake of all.")
    ]


def test_this_machines_library() -> None:
    documents = collect()
    asked = questions(documents)
    assert len(documents) > 1000
    assert len(asked) > 200
    by_key = {document.key: document for document in documents}
    assert len(by_key) == len(documents)
    assert all(len(document.text) >= SHORTEST_TEXT for document in documents)
    assert all(question.query.lower() not in by_key[question.key].text.lower() for question in asked)
    assert collect() == documents
