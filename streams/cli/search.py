"""The verb `search`: one question, asked of the version that serves or of a named one.

It prints what the space holds; the query is embedded by the model of that space, or not at all.
"""

from __future__ import annotations

import click

from connectors import reserved
from connectors.protocols import Hit
from streams.cli import Options
from streams.cli.builds import collection_argument
from streams.cli.output import emit, json_option, plain
from streams.cli.session import run, session, with_weaviate
from streams.search.answer import Answer
from streams.search.query import MODES, MOST_HITS
from streams.search.router import Router


@click.command()
@collection_argument
@click.argument("query")
@click.option(
    "-k",
    "limit",
    type=click.IntRange(1, MOST_HITS),
    default=10,
    show_default=True,
    metavar="K",
    help="How many documents.",
)
@click.option("--version", metavar="VERSION", help="Ask this version, whatever serves.")
@click.option("--mode", type=click.Choice(MODES), help="Take this route, whatever is configured.")
@click.option("--caller", metavar="KEY", help="Ask as this caller, for a rollout.")
@json_option
@click.pass_obj
def search(
    options: Options,
    collection: str,
    query: str,
    limit: int,
    version: str | None,
    mode: str | None,
    caller: str | None,
    as_json: bool,
) -> None:
    """Ask QUERY of the version of COLLECTION that serves, or of another one to see its answers beside.

    Example: crossfade search articles "how to cancel a subscription" --version v2
    """

    async def work() -> Answer:
        async with (
            session(options) as opened,
            opened.state() as view,
            opened.progress() as progress,
            with_weaviate(opened) as outside,
        ):
            router = Router(outside, view, progress)
            try:
                return await router.search(collection, query, limit, version, mode=mode, caller=caller)
            finally:
                await router.close()

    answer = run(work())
    if as_json:
        emit({"query": query, **answer.as_json()})
        return
    found = f"{len(answer.hits)} documents" if answer.hits else "nothing found"
    click.echo(
        f"{answer.collection}/{answer.version} ({answer.stage}): {found} in {answer.took_ms:.0f} ms, "
        f"space {answer.space}"
    )
    if answer.route not in ("serving", "named") or "cannot answer" in answer.why:
        click.echo(f"  {answer.route}: {answer.why}")
    for rank, hit in enumerate(answer.hits, 1):
        click.echo(f"{rank:>3}  {hit.score:.4f}  {plain(hit.doc_id)}  {_glimpse(hit)}".rstrip())


def _glimpse(hit: Hit) -> str:
    """The stored text's beginning, or the first property that is text."""
    texts = [hit.properties.get(reserved.TEXT), *(v for n, v in hit.properties.items() if n not in reserved.SHOWN)]
    text = next((t for t in texts if isinstance(t, str) and t.strip()), "")
    return plain(" ".join(text.split()), 80)
