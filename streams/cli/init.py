"""The verb `init`: a commented configuration, from questions at a terminal or from options.

It must never overwrite a file, show what a document says, or write or show a secret: only where one stands.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from connectors.errors import ConfigurationError, Refused
from streams import config
from streams.cli import Options
from streams.cli.guide import TYPES, Guide
from streams.cli.guide_answers import Given, Secrets
from streams.cli.guide_model import PROVIDERS
from streams.cli.output import next_line, plain
from streams.cli.session import run
from streams.config import DEFAULT_PATH, MAX_NAME, PATH_VARIABLE, Settings
from streams.setup import (
    Draft,
    yaml_text,
)
from streams.wiring import weaviate_settings


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file instead.")
@click.option("--bootstrap", metavar="HOST:PORT|local", help="Kafka's brokers; local: those of `crossfade up`.")
@click.option(
    "--client", multiple=True, metavar="KEY=VALUE", help="A librdkafka setting, such as security.protocol; repeatable."
)
@click.option("--weaviate-http", metavar="URL|local", help="Weaviate; local, the default: that of `crossfade up`.")
@click.option("--weaviate-grpc", metavar="HOST:PORT", help="Beside --weaviate-http.")
@click.option("--weaviate-api-key", metavar="REFERENCE", help="Where its key stands: '${NAME}' or file:/path.")
@click.option("--topic", metavar="NAME", help="The documents topic.")
@click.option("--collection", metavar="NAME", help="What commands will call it; from the topic's name by default.")
@click.option("--fields", metavar="NAME,...", help="The fields whose text is embedded.")
@click.option("--properties", metavar="NAME:TYPE,...", help=f"Fields kept beside the vector: {TYPES}.")
@click.option("--provider", type=click.Choice(PROVIDERS), help="The kind of embedding endpoint.")
@click.option("--url", metavar="URL", help="The endpoint, for tei and openai.")
@click.option("--model", metavar="NAME", help="The model; TEI says it itself.")
@click.option("--revision", help="The model's revision; TEI says it itself.")
@click.option("--api-key", metavar="REFERENCE", help="Where the key stands: '${NAME}' or file:/path; never the key.")
@click.option(
    "--dimensions", type=click.IntRange(1, 65535), metavar="N", help="Of hashing; others are asked for theirs."
)
@click.option("--document-prefix", help="What the model wants before documents.")
@click.option("--query-prefix", help="What the model wants before queries.")
@click.option("--price", type=click.FloatRange(min=0), metavar="USD", help="For a million tokens.")
@click.option("--version", default="v1", show_default=True, metavar="NAME", help="The first version's name.")
@click.option(
    "--sample", type=click.IntRange(2, 100_000), default=1000, show_default=True, metavar="N", help="Records looked at."
)
@click.pass_obj
def init(options: Options, /, output: Path | None, **given: object) -> None:
    """Write a commented configuration: asked for at a terminal, and from options alone without one.

    It looks at the topics there are, at the fields of a sample of real records (names, types, lengths; their contents
    are not shown), and asks the embedding endpoint for the length of its vectors with four short texts. Keys are never
    written: the file says ${NAME} or file:/path. An existing file is never changed.

    Example: crossfade init --bootstrap local --topic articles --fields title,text --provider hashing
    """
    path = output or _default_path(options)
    refuse_existing(path)
    refuse_unwritable(path)
    refuse_version(str(given["version"]))
    asked = Given(**given)  # type: ignore[arg-type]  # click has checked them
    with _variables() as secrets:
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        guide = Guide(asked, path, Secrets(path, secrets, terminal), terminal)
        guide.require()
        draft, seen = run(guide.draft())
        settings = write(path, yaml_text(draft, seen))
    _closing(path, draft, settings, secrets)


def _default_path(options: Options) -> Path:
    """Where every other verb would look."""
    return options.config or Path(os.environ.get(PATH_VARIABLE) or DEFAULT_PATH)


def refuse_existing(path: Path) -> None:
    """Raises Refused when there is anything at this path."""
    if path.exists() or path.is_symlink():
        raise Refused(
            f"{path} exists, and is not overwritten", next_step=f"edit it, or: crossfade init --output {_beside(path)}"
        )


def _beside(path: Path) -> Path:
    numbered = (path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(2, 1000))
    return next((other for other in numbered if not other.exists()), path.with_name("another.yaml"))


def refuse_unwritable(path: Path) -> None:
    """Raises ConfigurationError when no file can be made there: better before all the questions than after."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{path} cannot be written: {folder} is no folder that one may write in",
            next_step="name another place with --output",
        )


def refuse_version(name: str) -> None:
    """Raises ConfigurationError when no version can be called so: this too is better said before all the questions."""
    if not re.fullmatch(rf"[a-z0-9_]{{1,{MAX_NAME}}}", name):
        raise ConfigurationError(
            f"--version '{plain(name, 2 * MAX_NAME)}' is no version name",
            next_step=f"up to {MAX_NAME} of a-z, 0-9 and '_', such as --version v1",
        )


def write(path: Path, text: str) -> Settings:
    """Beside its place first, where it must load; then into it. Raises ConfigurationError for what does not load or
    cannot be written, Refused when the place has been taken meanwhile."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("x", encoding="utf-8") as file:
            file.write(text)
        try:
            settings = config.load(draft)
            _move(draft, path)
        finally:
            draft.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}", next_step="name another place with --output"
        ) from error
    except ConfigurationError as error:
        problems = re.sub(rf"^{re.escape(str(draft))}:\d+: ", "", error.message, flags=re.MULTILINE)
        raise ConfigurationError(
            f"what was said makes no configuration: {problems}",
            next_step="say something else there; nothing was written (options: crossfade init --help)",
        ) from None  # its next step names a file that is gone
    return settings


def _move(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)  # unlike a rename, it fails when somebody has put a file there
    except FileExistsError:
        refuse_existing(path)
        raise


def _closing(path: Path, draft: Draft, settings: Settings, secrets: Mapping[str, str]) -> None:
    click.echo(f"wrote {path}: collection {draft.collection}, version {draft.version}")
    for name in secrets:
        click.echo(f"  export {name}=..., as it was not written")
    if path.absolute() != (Path(os.environ.get(PATH_VARIABLE) or DEFAULT_PATH)).absolute():
        click.echo(f"  export {PATH_VARIABLE}={path}, or give --config {path} to each command")
    start = "" if settings.weaviate.http or _weaviate_runs(settings) else "crossfade up, for Weaviate; then "
    next_line(f"{start}crossfade plan {draft.collection} {draft.version}; crossfade worker builds it")


def _weaviate_runs(settings: Settings) -> bool:
    try:
        weaviate_settings(settings)
    except ConfigurationError:
        return False
    return True


@contextmanager
def _variables() -> Iterator[dict[str, str]]:
    """Secrets typed for variables that are unset: what is written must load now, and the endpoint be asked. They stand
    in this process's environment until it ends, and nowhere else."""
    typed: dict[str, str] = {}
    try:
        yield typed
    finally:
        for name in typed:
            os.environ.pop(name, None)
