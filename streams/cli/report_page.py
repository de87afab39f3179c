"""The report of a migration as one HTML page: nothing is fetched, nothing runs, and it reads on paper and in the dark.

Pure. Every word goes through `text`, which escapes it: keys, reasons and names come from outside.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import orjson

from streams.cli.history import lines
from streams.cli.output import count, duration, moment, plain, usd
from streams.cli.report_facts import SWEEP, Facts, Step, highest, plots_of
from streams.cli.report_plots import Plot, number, svg
from streams.cli.status_lines import traffic
from streams.progress import ProgressRecord

MARK = "<!doctype html>\n<!-- crossfade report -->\n"
"""Every page begins with it, so that a page may take the place of an older one and of nothing else."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #fff; --rule: #d1d9e0; --one: #0b5cad;
  --two: #b35900; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --paper: #0f1419; --rule: #3d444d;
  --one: #6cb6ff; --two: #f0a35e; --bad: #ff8a80; } }
@media print { :root { --ink: #000; --soft: #444; --paper: #fff; --rule: #bbb; --one: #0b5cad; --two: #b35900;
  --bad: #b42318; } section, figure, tr { break-inside: avoid; } section.long { break-inside: auto; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--rule); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } .wide { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--rule);
  overflow-wrap: anywhere; }
th { font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.t { white-space: nowrap; } .soft, figcaption, .why { color: var(--soft); } .bad { color: var(--bad); }
figure { margin: 1.2rem 0; } figcaption { font-size: .9rem; }
.plot { width: 100%; height: auto; } .plot text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.plot .number { fill: var(--ink); } .grid { stroke: var(--rule); stroke-width: .7; }
.mark { stroke: var(--soft); stroke-width: .8; stroke-dasharray: 2 3; } .line { fill: none; stroke-width: 1.8; }
.line0 { stroke: var(--one); } .line1 { stroke: var(--two); } .dot0 { fill: var(--one); } .dot1 { fill: var(--two); }
"""


class Html(str):
    """Markup that was made here. Whatever is a plain `str` is text, and is escaped."""

    __slots__ = ()


def text(words: object) -> Html:
    """Escaped, on one line, without control characters."""
    return words if isinstance(words, Html) else Html(html.escape(plain(str(words))))


def tag(name: str, *children: object, kind: str = "") -> Html:
    of_kind = f' class="{html.escape(kind)}"' if kind else ""
    return Html(f"<{name}{of_kind}>{''.join(text(child) for child in children)}</{name}>")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A head that ends in a space stands over numbers."""
    kinds = ["n" if head.endswith(" ") else "" for head in heads]
    head = tag("tr", *(tag("th", head.strip(), kind=kind) for head, kind in zip(heads, kinds, strict=True)))
    body = [tag("tr", *(tag("td", cell, kind=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), kind="wide")


def pairs(rows: Iterable[tuple[str, object]]) -> Html:
    return tag("table", tag("tbody", *(tag("tr", tag("th", name), tag("td", said)) for name, said in rows)))


def section(title: str, *parts: object, kind: str = "") -> Html:
    return tag("section", tag("h2", title), *parts, kind=kind)


def page(facts: Facts) -> str:
    """The whole file."""
    build = facts.build
    title = f"{build.key}: report of a migration"
    sections = [
        section("Summary", *(tag("p", sentence) for sentence in _summary(facts)), _stages(facts)),
        _plots(facts),
        _coverage(facts),
        _gates(facts),
        _sweeps(facts),
        _costs(facts),
        _faults(facts),
        _time_line(facts),
        _model(facts),
    ]
    head = "".join(
        (
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            tag("title", title),
            f"<style>{STYLE}</style>",
        )
    )
    made = f"Made {moment(facts.now_ms)}. All times are UTC."
    body = "".join((tag("h1", title), tag("p", made, kind="soft"), *sections))
    return f'{MARK}<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def _summary(facts: Facts) -> list[str]:
    build, whole = facts.build, facts.whole
    sentences = [
        f"Version {build.version} of {build.collection} is {build.stage}, fingerprint {build.fingerprint}, epoch "
        f"{build.epoch}; {facts.collection.serving or 'nothing'} serves {build.collection} now."
    ]
    if build.started_ms and build.ready_ms:
        took = duration((build.ready_ms - build.started_ms) / 1000)
        sentences.append(f"Begun {moment(build.started_ms)} and ready {moment(build.ready_ms)}, {took} later.")
    elif build.started_ms:
        sentences.append(f"Begun {moment(build.started_ms)}, not ready yet.")
    if whole is not None and whole.planned:
        sentences.append(
            f"{whole.completed:,} of {count(whole.total, 'document')} of the history are done; "
            f"{whole.changed_mid_migration:,} of them changed meanwhile, and {whole.unchanged_skipped:,} changes of "
            "equal text were not embedded again."
        )
    for step in facts.steps_named("cutover", "rollback"):
        by = f" by {step.entry.who}" if step.entry.who else ""
        sentences.append(f"{step.entry.event.capitalize()} {moment(step.entry.at_ms)}{by}: {step.entry.message}.")
    return sentences


def _stages(facts: Facts) -> Html:
    rows = [
        (stage, moment(begin), "-" if end is None else moment(end), duration(((end or facts.now_ms) - begin) / 1000))
        for stage, begin, end in facts.stages
    ]
    return table(("stage", "from", "to", "lasted "), rows) if rows else tag("p", "The journal holds no stage of it.")


# plots


def _plots(facts: Facts) -> Html:
    if facts.series is None:
        said = "No controller has recorded a course of this build, so there is nothing to plot."
        return section("Over time", tag("p", said))
    said = (
        "Recorded by the controller, thinned out as time passes: a point is what was counted at its time, a throughput "
        "the mean between two points, a lag the highest between them. A line is broken where nobody looked. The "
        "numbers above a plot are those of the time line below."
    )
    return section("Over time", tag("p", said, kind="soft"), *map(_plot, plots_of(facts)))


def _plot(plot: Plot) -> Html:
    if plot.empty:
        return tag("p", f"{plot.title}: too short to plot.")
    marks = ("solid", "dashed")
    said = []
    for line in plot.lines:
        peak = highest(line.points)
        shown = f"{line.name} ({marks[line.dashed]})" if len(plot.lines) > 1 else line.name
        said.append(f"{shown}: at most {number(peak) if peak is not None else '-'}")
    caption = f"{plot.title}. {'; '.join(said)} ({plot.axis})."
    return tag("figure", Html(svg(plot)), tag("figcaption", caption))


# figures


def _coverage(facts: Facts) -> Html:
    whole = facts.whole
    if whole is None:
        return section("Coverage by tier", tag("p", "No progress record of this build is left."))
    if not whole.tiers:
        return section("Coverage by tier", tag("p", f"No tier was reported. {_covered(whole)}"))
    rows = [
        (
            tier.name,
            f"{tier.completed:,}",
            f"{tier.total:,}",
            percent(tier.completed, tier.total),
            percent(tier.weight_completed, tier.weight) if tier.weight else "-",
        )
        for tier in whole.tiers
    ]
    share = traffic(whole.tiers)
    by_traffic = "" if share is None else f" Weighted by traffic: {percent(share, 1.0)}."
    return section(
        "Coverage by tier",
        table(("tier", "done, documents ", "all, documents ", "covered ", "of its traffic "), rows),
        tag("p", _covered(whole) + by_traffic),
    )


def _covered(whole: ProgressRecord) -> str:
    if not whole.planned:
        return "The plan scan was not complete: the number of documents is not known."
    return f"{whole.completed:,} of {count(whole.total, 'document')}, {percent(whole.completed, whole.total)}."


def percent(part: float, whole: float) -> str:
    """Rounded down: 100% is all of it."""
    if whole <= 0 or part >= whole:
        return "100%"
    return f"{int(1000 * part / whole) / 10:.1f}%"


def _gates(facts: Facts) -> Html:
    if not facts.gates:
        return section("Gate", tag("p", "No cutover to this version has asked the gate yet."))
    parts: list[Html] = []
    for step, gate in facts.gates:
        rows = [
            (tag("span", check.verdict, kind="" if check.verdict == "pass" else "bad"), check.name, check.sentence)
            for check in gate.checks
        ]
        parts.append(tag("h3", f"{gate.verdict}: {step.entry.event}, {_where(step)}"))
        parts.append(table(("verdict", "check", "what was found"), rows))
        parts += [tag("p", f"Note: {note}", kind="soft") for note in gate.notes]
        for name, title in (("forced", "Forced"), ("accepted_inconclusive", "Accepted although inconclusive")):
            if reason := step.outcome.get(name):
                parts.append(tag("p", f"{title}: {reason}"))
    return section("Gate", *parts)


def _where(step: Step) -> str:
    return f"{moment(step.entry.at_ms)}, entry {step.number} of the time line"


def _sweeps(facts: Facts) -> Html:
    if not facts.sweeps:
        return section("Sweeps", tag("p", "No sweep of this version stands in the journal; cutover makes one."))
    rows = [
        (
            moment(step.entry.at_ms),
            step.entry.event,
            *(f"{step.swept[name]:,}" if name in step.swept else "-" for name in SWEEP),
        )
        for step in facts.sweeps
    ]
    heads = ("when", "for", *(f"{name} " for name in SWEEP))
    told = (
        "Documents of the space against the log, both ways. crossfade verify makes one at any time, without an entry."
    )
    return section("Sweeps", table(heads, rows), tag("p", told, kind="soft"))


def _costs(facts: Facts) -> Html:
    rows: list[tuple[str, object]] = []
    if facts.spent is not None:
        tokens, cost = facts.spent
        rows += [("tokens", f"{tokens:,}"), ("cost", f"{usd(cost)} USD")]
    if (budget := facts.build.controls.budget_usd) is not None:
        rows.append(("budget", f"{usd(budget)} USD"))
    if (counted := facts.counted) is not None:
        rows += [
            ("documents embedded in the replay", f"{counted.embedded_replay:,}"),
            ("documents embedded live", f"{counted.embedded_live:,}"),
            ("documents embedded by mends", f"{counted.embedded_mend:,}"),
            ("texts from the vector cache", f"{counted.cached:,}"),
            ("texts cut at the model's limit", f"{counted.truncated:,}"),
            ("equal texts not embedded again", f"{counted.unchanged_skipped:,}"),
        ]
    if not rows:
        return section("Costs", tag("p", "Nobody has reported what it came to."))
    return section("Costs", pairs(rows))


# what went wrong, and did no harm


def _faults(facts: Facts) -> Html:
    rows: list[tuple[str, object]] = []
    if (counted := facts.counted) is not None:
        causes = ", ".join(f"{cause} {found:,}" for cause, found in sorted(facts.letters.items()))
        letters = count(counted.dead_letters, "event") + (f" (by cause: {causes})" if causes else "")
        rows.append(("sent to the dead letters", letters))
        rows.append(("mended after a doubt", f"{count(counted.mended, 'document')}"))
    if facts.whole is not None:
        rows.append(("unsettled now", count(facts.whole.unsettled, "key")))
    failures = facts.steps_named("failed")
    refused = [step for step in facts.steps if step.entry.event.endswith(" refused")]
    asked = facts.steps_named("repair", "redrive")
    rows += [
        ("stopped", "; ".join(f"{step.entry.message} ({_where(step)})" for step in failures) or "never"),
        ("steps refused", f"{len(refused)}: entries {_numbers(refused)}" if refused else "none"),
        ("repairs and redrives asked for", f"{len(asked)}: entries {_numbers(asked)}" if asked else "none"),
        ("sweeps before a cutover", str(len(facts.sweeps))),
    ]
    parts = [pairs(rows)]
    if (series := facts.series) is not None:
        parts.append(tag("h3", "Workers"))
        shown = sorted(series.runs, key=lambda run: run.since_ms)
        parts.append(
            table(
                ("worker", "its lanes started", "last reported"),
                [(run.worker or "-", moment(run.since_ms), moment(run.last_ms)) for run in shown],
            )
            if shown
            else tag("p", "No worker has reported.")
        )
        older = f" {series.starts - len(shown):,} older ones are not kept." if series.starts > len(shown) else ""
        unseen = duration(series.unseen_ms / 1000)
        parts.append(
            tag(
                "p",
                f"Started {count(series.starts, 'time')}.{older} Nobody looked, or no worker reported, for {unseen}.",
            )
        )
        parts.append(tag("h3", "Waits and limits"))
        waits = [
            (wait.status, wait.reason or "-", f"{wait.times:,}", duration(wait.lasted_ms / 1000), moment(wait.first_ms))
            for wait in sorted(series.waits, key=lambda wait: wait.first_ms)
        ]
        parts.append(
            table(("status", "reason", "times ", "lasted ", "first"), waits)
            if waits
            else tag("p", "It never gave a reason to wait or to go slowly.")
        )
    return section("Faults survived, and waits", *parts)


def _numbers(steps: Sequence[Step]) -> str:
    return ", ".join(str(step.number) for step in steps)


def _time_line(facts: Facts) -> Html:
    if not facts.steps:
        return section("Time line", tag("p", "The journal holds no entry of this build."))
    rows = []
    for step in facts.steps:
        entry = step.entry
        said = [text(entry.message)] if entry.message else []
        said += [tag("div", line.strip(), kind="why") for line in lines(entry)[1:]]
        rows.append(
            (str(step.number), moment(entry.at_ms), entry.event, entry.who or "-", step.stage, Html("".join(said)))
        )
    return section("Time line", table(("no. ", "when", "what", "by", "stage", "what came of it"), rows), kind="long")


def _model(facts: Facts) -> Html:
    build = facts.build
    rows: list[tuple[str, object]] = [
        ("fingerprint", build.fingerprint),
        ("space", build.space),
        ("alias", facts.collection.alias or "-"),
        ("topic", f"{build.topic}, {count(build.partitions, 'partition')}"),
        ("offsets before the barrier", f"{sum(build.barrier.values()):,}"),
    ]
    origin = [(f"provenance: {name}", value) for name, value in build.provenance.items()]
    envelope = [
        (name, value if isinstance(value, str) else orjson.dumps(value).decode())
        for name, value in sorted(build.envelope.items())
    ]
    return section("Model", pairs([*rows, *origin]), tag("h3", "Envelope"), pairs(envelope))
