"""Reads a YAML file into plain values, remembering the line of every key and which values came from elsewhere.

Resolves `${NAME}`, `${NAME:-default}` and secret files; never shows a value in an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml
from yaml.reader import ReaderError

from connectors.errors import ConfigurationError
from connectors.protocols import JSON

KeyPath = tuple[str | int, ...]

_VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)\}")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_TYPED = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")
_TEXT = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")


class Stamp(NamedTuple):
    """A file that has another one has been changed, or replaced."""

    modified_ns: int
    inode: int
    size: int


def stamp(path: Path) -> Stamp | None:
    """None where there is no file that could be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_mtime_ns, found.st_ino, found.st_size)


@dataclass(slots=True)
class Source:
    """The values of one file, and where each came from. `files`: that one, and those with secrets, as they were just
    before they were read."""

    path: Path
    data: JSON = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    hidden: set[KeyPath] = field(default_factory=set)
    files: dict[Path, Stamp | None] = field(default_factory=dict)

    def read(self, path: Path) -> str:
        """Raises OSError, and UnicodeDecodeError, whose text holds the file's bytes."""
        self.files[path] = stamp(path)
        return path.read_bytes().decode()

    def resolve(self, loc: Sequence[object], *, missing: bool = False) -> KeyPath:
        """A validator's location as a path of this file: parts that are no keys of it (a union's tag) are left out."""
        path: KeyPath = ()
        for index, part in enumerate(loc):
            last = index == len(loc) - 1
            if isinstance(part, str | int) and ((*path, part) in self.lines or (last and missing)):
                path = (*path, part)
        return path

    def line(self, path: KeyPath) -> int:
        """Line of the key, or of the nearest key above it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def show(self, path: KeyPath) -> str:
        """The value as a reader of the file sees it; "" for what may be secret, came from elsewhere, or is long."""
        value: JSON = self.data
        if any(path[:end] in self.hidden for end in range(1, len(path) + 1)):
            return ""
        for part in path:
            if isinstance(value, dict) and part in value:
                value = value[str(part)]
            elif isinstance(value, list) and isinstance(part, int):
                value = value[part]
            else:
                return ""
        shown = repr(value)
        return shown if isinstance(value, str | int | float) and len(shown) <= 40 and "@" not in shown else ""


def read_yaml(path: Path) -> Source:
    """Raises ConfigurationError for a file that cannot be read, is not YAML, has a key twice, or names an unset
    variable or an unreadable secret file."""
    source = Source(path)
    try:
        text = source.read(path)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror}", next_step="name a readable file with --config"
        ) from error
    except UnicodeDecodeError:
        # without its cause: the decoder's error holds the file's bytes
        raise ConfigurationError(f"{path}: is not UTF-8", next_step=f"save {path} as UTF-8") from None
    try:
        loader = yaml.SafeLoader(text)
    except ReaderError as error:
        wanted = "printable characters, tabs and line ends only"
        line = text.count("\n", 0, error.position) + 1
        raise _error(source, line, f"holds a character YAML does not allow (U+{error.character:04X})", wanted) from None
    try:
        node = loader.get_single_node()
        if node is None:
            raise _error(source, 1, "the file is empty", "kafka, weaviate and collections")
        source.data = _Reader(source, loader).value(node, (), ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # what the parser quotes may be a secret, so quotations longer than a character are left out
        problem = _QUOTED.sub(lambda m: m[0] if len(m[0]) <= 3 else "(not shown)", error.problem or "cannot be read")
        raise _error(source, mark.line + 1 if mark else 1, f"not YAML: {problem}", "a YAML file") from None
    except RecursionError:
        raise _error(source, 1, "is nested too deeply", "a file of a few levels") from None
    finally:
        loader.dispose()
    return source


def _error(source: Source, line: int, problem: str, wanted: str, path: KeyPath = ()) -> ConfigurationError:
    where = f"{'.'.join(str(part) for part in path)}: " if path else ""
    return ConfigurationError(
        f"{source.path}:{line}: {where}{problem}; wanted: {wanted}",
        next_step=f"correct {source.path} and run the command again",
    )


def _is_secret(path: KeyPath) -> bool:
    return path[-1:] == ("api_key",) or path[-2:-1] == ("client",)


class _Reader:
    def __init__(self, source: Source, loader: yaml.SafeLoader) -> None:
        self._source = source
        self._loader = loader

    def value(self, node: yaml.Node, path: KeyPath, above: tuple[int, ...]) -> JSON:
        if id(node) in above:
            raise self._error(node, "refers to itself", "values without circles", path)
        within = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, within)
        if isinstance(node, yaml.SequenceNode):
            items: list[JSON] = []
            for index, child in enumerate(node.value):
                self._source.lines[(*path, index)] = child.start_mark.line + 1
                items.append(self.value(child, (*path, index), within))
            return items
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, above: tuple[int, ...]) -> JSON:
        result: dict[str, JSON] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key is not text", "plain keys", path)
            # as written: a version called 2024 or on stays what its author wrote
            key = str(key_node.value)
            below = (*path, key)
            if key in result:
                first = self._source.lines[below]
                raise self._error(key_node, f"is there twice, first on line {first}", "each key once", below)
            self._source.lines[below] = key_node.start_mark.line + 1
            result[key] = self.value(child, below, above)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> JSON:
        if node.tag in _TYPED:
            try:
                typed: JSON = self._loader.construct_object(node)
            except (ValueError, KeyError):  # thousands of digits; or a word behind !!int or !!bool
                raise self._error(node, "cannot be read as what it is marked as", "a plain number", path) from None
            return typed
        if node.tag not in _TEXT:
            raise self._error(node, "has a YAML tag", "plain text, numbers, true, false or null", path)
        text = self._expand(node, str(node.value), path)
        if _is_secret(path):
            self._source.hidden.add(path)
            if text.startswith("file:"):
                text = self._secret_file(node, Path(text.removeprefix("file:")), path)
        return text

    def _expand(self, node: yaml.Node, text: str, path: KeyPath) -> str:
        def replace(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            self._source.hidden.add(path)
            parts = _NAME.fullmatch(match[1])
            if parts is None:
                raise self._error(
                    node, "has a malformed ${...}", "${NAME} or ${NAME:-default}; $${ for a plain ${", path
                )
            found = os.environ.get(parts[1]) or parts[2]  # empty is unset, as in a shell's :-
            if found is None:
                problem = f"the environment variable {parts[1]} is unset or empty"
                raise self._error(node, problem, f"export {parts[1]}, or ${{{parts[1]}:-default}}", path)
            return found

        return _VARIABLE.sub(replace, text)

    def _secret_file(self, node: yaml.Node, file: Path, path: KeyPath) -> str:
        """A relative path is seen from the configuration file's folder; white space at the end is not the secret's."""
        place = self._source.path.parent / file
        try:
            secret = self._source.read(place).rstrip()
        except OSError as error:
            problem = f"the secret file {place} cannot be read: {error.strerror}"
            raise self._error(node, problem, "file:/path/of/a/readable/file", path) from error
        except UnicodeDecodeError:
            raise self._error(node, f"the secret file {place} is not UTF-8", "a text file", path) from None
        if not secret:
            raise self._error(node, f"the secret file {place} is empty", "a file with the secret", path)
        return secret

    def _error(self, node: yaml.Node, problem: str, wanted: str, path: KeyPath) -> ConfigurationError:
        return _error(self._source, node.start_mark.line + 1, problem, wanted, path)
