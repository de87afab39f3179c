"""The command line: `crossfade VERB`, each verb loaded only when it is called.

It must never import a client library by itself, so that `crossfade --help` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click

from connectors.errors import ConfigurationError, CrossfadeError
from streams.cli import logs

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class Options:
    """What was said before the verb. `log_level` None: the verb's own default."""

    config: Path | None = None
    log_level: str | None = None
    debug: bool = False
    log_format: str = "plain"


class Verb(NamedTuple):
    """Where a verb's command is, and its line in `crossfade --help`."""

    module: str
    name: str
    help: str


VERBS = {
    "up": Verb("services", "up", "Start local Kafka and Weaviate, or check the configured ones."),
    "down": Verb("services", "down", "Stop the local Kafka and Weaviate."),
    "demo": Verb("demo", "demo", "The whole story on real services, in a minute or two."),
    "doctor": Verb("doctor", "doctor", "What is wrong with a deployment, and the fix. Changes nothing."),
    "init": Verb("init", "init", "Write a commented configuration, guided at a terminal."),
    "produce": Verb("produce", "produce", "Send document events from a file to the topic."),
    "worker": Verb("worker", "worker", "Host the embedding agents and the controller."),
    "serve": Verb("serve", "serve", "Search, vector spaces and every verb over HTTP."),
    "compare": Verb("compare", "compare", "Candidate models on a sample of the documents, before any build."),
    "plan": Verb("plan", "plan", "What building a version will take. Spends nothing."),
    "start": Verb("builds", "start", "Begin building a version."),
    "status": Verb("status", "status", "Stage, progress, rate, ETA and the next command."),
    "pause": Verb("builds", "pause", "Hold a version's replay."),
    "resume": Verb("builds", "resume", "Let a paused or stopped version go on."),
    "set": Verb("builds", "set_", "Change a running build, such as its replay rate."),
    "abort": Verb("builds", "abort", "Give up a build and delete its space."),
    "verify": Verb("verify", "verify", "Compare a version's space with the log, both ways."),
    "redrive": Verb("verify", "redrive", "Apply a version's dead letters again."),
    "evaluate": Verb("evaluate", "evaluate", "Is a version good enough to serve? Both on judged queries."),
    "cutover": Verb("swap", "cutover", "Move search to a version, atomically."),
    "rollback": Verb("swap", "rollback", "Move search back to the previous version."),
    "rollout": Verb("rollout", "rollout", "A ready version's share of the callers: show, raise, end."),
    "shadow": Verb("shadow", "shadow", "How a coming version agrees with the serving one, in users' queries."),
    "retire": Verb("builds", "retire", "Stop writing a version and delete its space."),
    "search": Verb("search", "search", "Ask a question of the version that serves."),
    "explain": Verb("explain", "explain", "One document's whole story."),
    "history": Verb("history", "history", "Who did what to a collection, and when."),
    "report": Verb("report", "report", "One HTML page of a whole migration, with plots."),
}


class _Verbs(click.Group):
    """Loads a verb when it is asked for, and turns every error into a message and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        logs.catch_warnings()  # some libraries warn about each other as soon as they are imported
        command = getattr(importlib.import_module(f"streams.cli.{verb.module}"), verb.name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's own, without loading a single verb."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except CrossfadeError as error:
            _debug(ctx)
            _say_error(ctx, error.message, error.next_step)
            ctx.exit(MISUSED if isinstance(error, ConfigurationError) else FAILED)
        except Exception as error:  # noqa: BLE001  the last place there is: a person reads this, not a traceback
            _debug(ctx)
            _say_error(
                ctx,
                f"unexpected {type(error).__name__}: {_first_line(error)}",
                "this is a defect; see where with: crossfade --debug VERB ...",
            )
            ctx.exit(FAILED)


def _say_error(ctx: click.Context, message: str, next_step: str) -> None:
    """For people; where logs are read by a program, as a line of the log."""
    if ctx.params.get("log_format") == "json":
        logging.getLogger(__name__).error("%s", message, extra={"next_step": next_step})
        return
    click.echo(f"error: {message}", err=True)
    if next_step:
        click.echo(f"  next: {next_step}", err=True)


def _debug(ctx: click.Context) -> None:
    if ctx.params.get("debug"):
        click.echo(traceback.format_exc(), err=True, nl=False)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["(no message)"])[0][:300]


@click.command(
    cls=_Verbs,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The configuration file. Else CROSSFADE_CONFIG, else config/crossfade.yaml.",
)
@click.option("--log-level", type=click.Choice(logs.LEVELS), help="What to log on stderr. [warning; worker: info]")
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMATS),
    default="plain",
    envvar=logs.FORMAT_VARIABLE,
    help=f"json: one JSON object a line. Also {logs.FORMAT_VARIABLE}. [plain]",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="crossfade", prog_name="crossfade")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, log_level: str | None, log_format: str, debug: bool) -> None:
    """Upgrade the embedding model behind a live vector search, without downtime and without losing a document.

    Exit status: 0 done, 1 refused or failed (the reason and the next command are on stderr), 2 wrong usage or
    configuration. See `crossfade VERB --help` for each verb.
    """
    ctx.obj = Options(config, log_level, debug, log_format)
    level = log_level or ("info" if ctx.invoked_subcommand == "worker" else "warning")
    ctx.call_on_close(logs.to_stderr(level, log_format))


def main() -> None:
    """The console script."""
    try:
        cli(prog_name="crossfade")
    except KeyboardInterrupt:  # before or after the verb ran
        sys.exit(INTERRUPTED)
