"""What `init` was told: the options, references to secrets, and answers checked as soon as they are given.

It must never let a secret reach the screen, an error or the file that is written: only where one stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from connectors.errors import ConfigurationError
from streams.cli.asking import ask_hidden, ask_until
from streams.config import Settings
from streams.setup import is_reference

T = TypeVar("T")

LOCAL = "local"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYS = ("none", "env", "file")


@dataclass(frozen=True, slots=True)
class Given:
    """The options, None where nothing was said."""

    bootstrap: str | None
    client: tuple[str, ...]
    weaviate_http: str | None
    weaviate_grpc: str | None
    weaviate_api_key: str | None
    topic: str | None
    collection: str | None
    fields: str | None
    properties: str | None
    provider: str | None
    url: str | None
    model: str | None
    revision: str | None
    api_key: str | None
    dimensions: int | None
    document_prefix: str | None
    query_prefix: str | None
    price: float | None
    version: str
    sample: int


@dataclass(slots=True)
class Secrets:
    """Where keys stand. `path`: of the file to be written; `typed`: values of variables that were unset, for now."""

    path: Path
    typed: dict[str, str]
    terminal: bool

    def reference(self, given: str | None, option: str, whose: str, variable: str) -> str:
        """Where a key stands: "${NAME}", "file:/path" or "" for no key; its value can be had from `value`."""
        if given is not None:
            if not is_reference(given):  # not shown: it may be the key itself
                raise ConfigurationError(
                    f"{option} does not say where the key stands", next_step=f"{option} '${{NAME}}', or file:/path"
                )
            return given
        if not self.terminal:
            return ""
        where = ask_until(f"Key for {whose}: none, env (a variable) or file", one_of(_KEYS), "none")
        if where == "none":
            return ""
        if where == "file":
            path = ask_until("File with the key", self._readable, None)
            return f"file:{path}"
        name = ask_until("Variable that holds the key (its name)", _variable_name, variable)
        if not os.environ.get(name) or name in self.typed:
            said = f"{name} is not set. Its value, to ask the endpoint now (not shown, not written)"
            if typed := ask_hidden(said):
                os.environ[name] = self.typed[name] = typed
        return f"${{{name}}}"

    def _readable(self, said: str) -> str:
        if not said or not (self.path.parent / Path(said).expanduser()).is_file():
            raise ValueError("a file that exists; a relative path is seen from the configuration's folder")
        return said

    def value(self, text: str) -> str:
        """What a reference stands for; other text is itself. Raises ConfigurationError when there is nothing."""
        if text.startswith("file:"):
            place = self.path.parent / Path(text.removeprefix("file:"))
            try:
                return place.read_text().rstrip()
            except (OSError, UnicodeDecodeError):
                raise ConfigurationError(
                    f"the secret file {place} cannot be read", next_step="name a readable text file"
                ) from None
        if not is_reference(text):
            return text
        name = text[2:-1]
        value = os.environ.get(name)
        if not value:
            raise ConfigurationError(f"the environment variable {name} is not set", next_step=f"export {name}=...")
        return value


def checked_settings(raw: Mapping[str, object], options: str) -> Settings:
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise unfit(error, options) from None  # pydantic's own message would show the values


def unfit(error: ValidationError, options: str) -> ConfigurationError:
    problems = [
        f"{'.'.join(str(part) for part in item['loc'])} {item['msg']}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return ConfigurationError("; ".join(problems), next_step=f"correct {options}: crossfade init --help")


def option_value(name: str, checked: Callable[[str], T], said: str) -> T:
    try:
        return checked(said)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}", next_step="crossfade init --help") from error


def one_of(words: Sequence[str]) -> Callable[[str], str]:
    def checked(said: str) -> str:
        if said not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return said

    return checked


def _variable_name(said: str) -> str:
    name = said.removeprefix("${").removesuffix("}")
    if not _VARIABLE.fullmatch(name):  # never repeated: somebody may have pasted the key
        raise ValueError("the name of an environment variable: letters, digits and '_'")
    return name
