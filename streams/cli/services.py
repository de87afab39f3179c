"""Verbs for local services: up and down.

They never start anything where addresses are configured, and stop only what `up` started.
"""

from __future__ import annotations

from typing import Literal, get_args

import click

from connectors import services
from connectors.kafka.topics import Topics
from connectors.weaviate.spaces import open_store
from streams.cli import Options
from streams.cli.output import emit, json_option, next_line, say
from streams.cli.session import BROKER_PATIENCE_S, read_settings, run, unconfigured
from streams.config import Settings
from streams.wiring import SERVICES_FOLDER, kafka_settings, weaviate_settings

How = Literal["auto", "docker", "local"]


@click.command()
@click.option(
    "--how",
    type=click.Choice(get_args(How)),
    default="auto",
    show_default=True,
    help="Docker where an engine answers, else local processes; or one of them.",
)
@json_option
@click.pass_obj
def up(options: Options, how: How, as_json: bool) -> None:
    """Start Kafka and Weaviate on this machine and wait until both answer; minutes the first time.

    Where the configuration names addresses, nothing is started there: they are only asked whether they answer.

    Example: crossfade up
    """
    settings = Settings() if unconfigured(options) else read_settings(options)[1]
    kafka_given, weaviate_given = bool(settings.kafka.bootstrap_servers), bool(settings.weaviate.http)
    if not (kafka_given and weaviate_given):
        services.up(SERVICES_FOLDER, say=say, how=how)
    for given, name in ((kafka_given, "Kafka"), (weaviate_given, "Weaviate")):
        if given:
            say(f"{name} is configured: nothing is started for it, only asked whether it answers")
    addresses = run(_answering(settings))
    if as_json:
        emit(addresses)
        return
    for name, address in addresses.items():
        click.echo(f"{name.replace('_', ' ')}: {address}")
    first = "crossfade produce TOPIC FILE --create-topic, then: crossfade init"
    next_line("crossfade worker" if settings.collections else first)


async def _answering(settings: Settings) -> dict[str, str]:
    """The addresses in use, once both have answered. Raises Unreachable within seconds otherwise."""
    kafka, weaviate = kafka_settings(settings), weaviate_settings(settings)
    await Topics(kafka).wait_for_broker(BROKER_PATIENCE_S, say)
    store = await open_store(weaviate)
    await store.close()
    return {"kafka": kafka.bootstrap_servers, "weaviate_http": weaviate.http, "weaviate_grpc": weaviate.grpc}


@click.command()
@click.option("--remove-data", is_flag=True, help="Delete their data and logs too: topics and spaces are gone then.")
def down(remove_data: bool) -> None:
    """Stop the Kafka and Weaviate that `crossfade up` started in this folder. Their data is kept.

    Example: crossfade down
    """
    services.down(SERVICES_FOLDER, say=say, remove_data=remove_data)
    if remove_data:
        say(f"the services' data below {SERVICES_FOLDER} is removed")
