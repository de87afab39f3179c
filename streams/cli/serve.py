"""The verb `serve`: the HTTP interface, and what makes keys for it.

It adds nothing to `streams.api.server` but a way in, and the plan that the verb `plan` makes.
"""

from __future__ import annotations

import secrets
import sys

import click

from connectors.errors import ConfigurationError
from connectors.kafka.inspection import Inspection
from connectors.protocols import JSON
from streams.api.server import Server
from streams.cli import Options
from streams.cli.output import say
from streams.cli.plan import embedders_of, known
from streams.cli.plan_lines import plan_json
from streams.cli.session import read_settings, run, session
from streams.config import Settings
from streams.config_serve import SHORTEST_KEY, hash_of
from streams.garbage import collect_seldom
from streams.planning import make_plan

KEY_BYTES = 32


@click.command()
@click.option("--new-key", is_flag=True, help="Make a key: print it once, with the hash for serve.keys, and end.")
@click.option(
    "--hash-key", is_flag=True, help="Read a key of yours from stdin, print its hash for serve.keys, and end."
)
@click.pass_obj
def serve(options: Options, new_key: bool, hash_key: bool) -> None:
    """Search, vector spaces and every operator verb over HTTP; runs until stopped.

    Listens on 127.0.0.1:8470 unless serve.listen says otherwise, which needs keys (serve.keys). What it can do is at
    /openapi.json; it goes on answering from the last known state while Kafka is away, and says so at /readyz.

    \b
    Example: crossfade serve
             crossfade serve --new-key
    """
    if new_key and hash_key:
        raise click.UsageError("--new-key and --hash-key do not go together")
    if new_key:
        key = secrets.token_urlsafe(KEY_BYTES)
        say(f"the key, shown this once: {key}")
        click.echo(hash_of(key))
        return
    if hash_key:
        click.echo(hash_of(_read_key()))
        return
    path, settings = read_settings(options)
    collect_seldom()  # a search waits while garbage is looked for
    run(Server(path, settings, _plan).run(on_ready=lambda url: say(f"serving at {url}")))


def _read_key() -> str:
    key = sys.stdin.readline().strip()
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(
            "this is no key that could be kept as a hash",
            next_step=f"{SHORTEST_KEY} or more random letters, digits and signs; or let one be made: "
            "crossfade serve --new-key",
        )
    return key


async def _plan(settings: Settings, collection: str, version: str, sample: int | None) -> dict[str, JSON]:
    declared = settings.collection(collection).version(version)
    async with (
        session(Options(), settings) as opened,
        known(opened, collection) as what,
        embedders_of(declared) as embedders,
    ):
        planned = await make_plan(
            settings,
            opened.kafka,
            Inspection(opened.kafka_settings),
            what,
            embedders,
            collection,
            version,
            sample=sample,
            probe=False,
        )
    return plan_json(planned)
