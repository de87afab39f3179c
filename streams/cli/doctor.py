"""The verb `doctor`: what is wrong with a deployment, what was looked at to know it, and the fix.

It reads only; with --probe it asks the endpoints for a few short texts.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from connectors.errors import ConfigurationError
from streams import config
from streams.cli import FAILED, Options
from streams.cli.output import WIDTH, emit, json_option, plain
from streams.cli.session import read_settings, run
from streams.doctoring import SAMPLE, examine
from streams.migration.doctor import Finding, Verdict, healthy

ORDER: Sequence[Verdict] = ("wrong", "note", "not known", "ok")


@click.command()
@click.argument("collection", required=False)
@click.option("--probe", is_flag=True, help="Ask the endpoints for a few short texts, which may cost some tokens.")
@click.option(
    "--sample",
    type=click.IntRange(min=1, max=100_000),
    default=SAMPLE,
    show_default=True,
    metavar="N",
    help="Objects of each space to look at, chosen at random.",
)
@json_option
@click.pass_obj
@click.pass_context
def doctor(
    context: click.Context, options: Options, collection: str | None, probe: bool, sample: int, as_json: bool
) -> None:
    """Look at configuration, topics, offsets, alias, spaces, endpoints and clocks; change nothing.

    Each line names what was looked at and what was found: ok, note, wrong, or not known where it cannot be seen. What
    is wrong comes with its fix. Exit status 0 when nothing is wrong, else 1.

    \b
    Example: crossfade doctor
             crossfade doctor articles --probe
    """
    findings = findings_of(options, collection, probe, sample)
    if as_json:
        emit({"healthy": healthy(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        for line in lines(findings):
            click.echo(line)
    if not healthy(findings):
        context.exit(FAILED)


def findings_of(options: Options, collection: str | None, probe: bool, sample: int) -> list[Finding]:
    """A file that cannot be read is a finding like any other; a misspelt collection is a refusal."""
    try:
        path, settings = read_settings(options)
    except ConfigurationError as error:
        where = str(options.config or Path(config.DEFAULT_PATH))
        return [Finding("configuration", where, "wrong", error.message, error.next_step)]
    return run(examine(settings, path, collection, probe_endpoints=probe, sample=sample))


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """In the order of the checks, in columns; then one line of sums."""
    marks = max((len(finding.verdict) for finding in findings), default=0)
    names = max((len(finding.check) for finding in findings), default=0)
    for one in findings:
        first, *more = one.found.splitlines() or [""]
        yield f"{one.verdict:<{marks}}  {one.check:<{names}}  {plain(one.looked_at)}: {plain(first)}"
        for line in more:
            yield f"{'':<{marks}}  {plain(line)}"
        if one.fix and one.verdict != "ok":
            yield from _fix(one.fix, marks + 2)
    counts = Counter(finding.verdict for finding in findings)
    yield ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])


def _fix(fix: str, indent: int) -> list[str]:
    return textwrap.wrap(
        plain(fix),
        WIDTH,
        initial_indent=f"{'':<{indent}}fix: ",
        subsequent_indent=" " * (indent + 5),
        break_long_words=False,
        break_on_hyphens=False,
    )
