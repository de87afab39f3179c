"""How a plan reads: a few labelled lines, the risks, one sentence to say yes to; and the same as JSON.

Pure: it must never show a figure more exact than it is, nor one without where it comes from.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from connectors.protocols import JSON, Capacity
from streams.cli.output import WIDTH, count, duration, plain, size, usd
from streams.migration.plan import (
    INDEX_BYTES,
    READ_ONLY_SHARE,
    Cost,
    Plan,
    SpaceSize,
    Tokens,
    room_left,
)
from streams.migration.plan_probe import Probed
from streams.migration.plan_risks import Risk, Severity
from streams.planning import Planned
from streams.versions import next_command

LABEL = 11
SEVERITY: dict[Severity, str] = {"stops": "stops the build", "loses": "may lose changes", "note": "note"}


def lines(planned: Planned) -> Iterator[str]:
    """What `crossfade plan` prints, but for the next command."""
    plan, measured = planned.plan, planned.plan.measured
    yield (
        f"{plan.collection}/{plan.version}: model {plain(plan.model)}, {plan.dimensions} dimensions, fingerprint "
        f"{plan.fingerprint}"
    )
    yield from _labelled("from", f"topic {plan.topic}, {count(plan.partitions, 'partition')}")
    yield from _labelled("documents", *_documents(plan))
    chunked = "" if measured.chunks == measured.documents else f"{count(measured.chunks, 'chunk')}, "
    yield from _labelled("text", f"{chunked}{count(measured.characters, 'character')}")
    yield from _labelled("tokens", *_tokens(plan.tokens, measured.documents, measured.requests))
    yield from _labelled("cost", *_cost(plan.cost))
    yield from _labelled("time", *_time(plan, planned.probed))
    yield from _labelled("space", *_spaces(plan))
    yield from _labelled("disk", _disk(plan.capacity))
    yield from _labelled("memory", *_memory(plan))
    if plan.tiers:
        yield from _labelled("order", ", then ".join(f"{tier.name} {tier.total:,}" for tier in plan.tiers))
    yield from _risks(planned.risks)
    yield ""
    yield sentence(plan)


def sentence(plan: Plan) -> str:
    """All of it in one line, for somebody to say yes to."""
    measured, tokens, cost, seconds = plan.measured, plan.tokens, plan.cost, plan.duration.seconds
    if not measured.documents:
        return f"There is nothing to embed in topic {plan.topic} yet."
    parts = [f"{_about(tokens)}{count(tokens.total, 'token')}"]
    if cost.high is not None and cost.prices:
        parts.append(_usd_range(cost))
    if seconds is not None:
        parts.append(f"{'at least' if plan.duration.at_least else 'about'} {duration(seconds)}")
    parts.append(f"about {size(plan.new.disk)} of disk")
    return f"Building {plan.version} embeds {count(measured.documents, 'document')}: {', '.join(parts)}."


def next_step(planned: Planned) -> str:
    """The command that says yes, or what stands in its way."""
    plan, build = planned.plan, planned.build
    blocking = next((risk for risk in planned.risks if risk.severity == "stops"), None)
    again = f"crossfade plan {plan.collection} {plan.version}"
    if blocking is not None:
        return f"{blocking.next_step}, then: {again}"
    if build is not None and build.active:
        return next_command(build.stage, collection=plan.collection, version=plan.version)
    if not plan.measured.replayed:
        return f"crossfade produce {plan.collection} FILE"
    return f"crossfade start {plan.collection} {plan.version}"


def _labelled(label: str, *texts: str) -> Iterator[str]:
    indent = " " * (LABEL + 2)
    first = f"  {label:<{LABEL}}"
    for text in texts:
        if text.startswith(" "):  # a line of a table: never wrapped
            yield (first if first.strip() else indent) + text[1:]
        else:
            yield from textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent)
        first = indent


def _documents(plan: Plan) -> Iterator[str]:
    measured = plan.measured
    yield (
        f"{measured.documents:,} to embed, of {count(measured.records, 'record')}: {measured.superseded:,} superseded, "
        f"{count(measured.deletes, 'delete')}"
    )
    if measured.refused:
        yield f"and {sum(measured.refused.values()):,} for the dead letters: see the risks"
    if measured.moved:
        yield f"{count(measured.moved, 'document')} changed while this was read: counted, and not measured"


def _tokens(tokens: Tokens, documents: int, requests: int) -> Iterator[str]:
    text = f"{_about(tokens)}{tokens.total:,}"
    if tokens.high > tokens.low:
        text += f" ({tokens.low:,} to {tokens.high:,} with 95% confidence)"
    if tokens.how == "tokenizer" and tokens.counted < documents:
        text += f", {tokens.why} of {tokens.counted:,}: --exact counts all"
    else:
        text += f", {tokens.why}"
    yield text
    if tokens.probe:
        yield f"{tokens.probe:,} of them for the probe text that rides with each of about {count(requests, 'request')}"


def _about(tokens: Tokens) -> str:
    return "about " if tokens.high > tokens.low or tokens.how in ("earlier", "bytes") else ""


def _cost(cost: Cost) -> Iterator[str]:
    if cost.high is None:
        yield f"unknown: no price for {', '.join(cost.unpriced)}"
        return
    if not cost.prices:
        yield "none: this model has no endpoint to pay"
        return
    each = " to ".join(f"{price:g}" for price in dict.fromkeys((cost.prices[0], cost.prices[-1])))
    yield f"{_usd_range(cost)}, at {each} USD a million tokens"
    if cost.budget is not None:
        yield f"budget {cost.budget:g} USD{': not enough' if cost.over_budget else ''}"


def _usd_range(cost: Cost) -> str:
    low, high = usd(cost.low or 0.0), usd(cost.high or 0.0)
    return f"{low} USD" if low == high else f"{low} to {high} USD"


def _time(plan: Plan, probed: Sequence[Probed]) -> Iterator[str]:
    span = plan.duration
    for one in probed:
        how = "" if one.counted else " by our count"
        yield (
            f"probe of {one.name}: {count(one.requests, 'request')} with the probe text, {one.tokens:,} tokens "
            f"spent{how}, {one.texts_per_s:,.1f} texts/s"
        )
    if span.seconds is None:
        yield "unknown: no rate or limits are set, and no build of this model was seen" + (
            ": --probe measures it with a few requests" if plan.paid else ""
        )
        if span.by:
            yield f"(with another model, {span.by})"
    elif not plan.measured.documents:
        yield "none"
    else:
        yield f"{'at least' if span.at_least else 'about'} {duration(span.seconds)}, by {span.by}"
        yield "edits made meanwhile come on top, and go first"


def _spaces(plan: Plan) -> Iterator[str]:
    rows = [(f"{one.name} ({one.stage or 'new'})", _sizes(one)) for one in plan.spaces]
    if len(rows) > 1:
        sums = [sum(column) for column in zip(*(sizes for _, sizes in rows), strict=True)]
        rows.append(("together", sums))
    wide = max(len(name) for name, _ in rows)
    yield " " + " " * wide + "".join(f"{head:>11}" for head in ("on disk", "vectors", "index", "contents", "lookups"))
    for name, sizes in rows:
        yield " " + f"{name:<{wide}}" + "".join(f"{size(one):>11}" for one in sizes)
    yield (
        f"vectors: float32; index: {INDEX_BYTES} bytes for each, Weaviate's own figure; contents: text and properties; "
        "lookups: their inverted indexes, as measured"
    )


def _sizes(one: SpaceSize) -> list[int]:
    return [one.disk, one.vectors, one.index, one.contents, one.lookups]


def _disk(capacity: Capacity) -> str:
    room = room_left(capacity)
    if room is None or capacity.disk_free_bytes is None:
        why = next((trouble for trouble in capacity.troubles if "disk" in trouble or "data_path" in trouble), "")
        return f"free: unknown; {why or 'set weaviate.metrics or weaviate.data_path'}"
    return f"{size(capacity.disk_free_bytes)} free, {size(room)} of it until Weaviate turns read-only " + (
        f"(at {READ_ONLY_SHARE:.0%} full)"
    )


def _memory(plan: Plan) -> Iterator[str]:
    text = f"about {size(plan.new.memory)} more, twice the vectors (Weaviate's rule of thumb)"
    used, limit = plan.capacity.memory_used_bytes, plan.capacity.memory_limit_bytes
    if used is not None and limit is not None:
        text += f"; {size(max(0, limit - used))} of {size(limit)} free"
    yield text


def _risks(risks: Sequence[Risk]) -> Iterator[str]:
    if not risks:
        yield from _labelled("risks", "none seen")
        return
    texts = []
    for risk in risks:
        texts.append(f"{SEVERITY[risk.severity]}: {plain(risk.what)}")
        if risk.next_step:
            texts.append(f"-> {plain(risk.next_step)}")
    yield from _labelled("risks", *texts)


def plan_json(planned: Planned) -> dict[str, JSON]:
    """Bytes, seconds and USD; null where nobody knows."""
    plan, measured, tokens, cost = planned.plan, planned.plan.measured, planned.plan.tokens, planned.plan.cost
    return {
        "collection": plan.collection,
        "version": plan.version,
        "fingerprint": plan.fingerprint,
        "model": plan.model,
        "dimensions": plan.dimensions,
        "topic": plan.topic,
        "partitions": plan.partitions,
        "documents": measured.documents,
        "replayed": measured.replayed,
        "records": measured.records,
        "superseded": measured.superseded,
        "deletes": measured.deletes,
        "moved": measured.moved,
        "refused": dict(measured.refused),
        "chunks": measured.chunks,
        "characters": measured.characters,
        "requests": measured.requests,
        "tokens": {
            "total": tokens.total,
            "low": tokens.low,
            "high": tokens.high,
            "probe": tokens.probe,
            "by": tokens.how,
            "counted_documents": tokens.counted,
        },
        "cost_usd": {"low": cost.low, "high": cost.high, "budget": cost.budget, "over_budget": cost.over_budget},
        "duration": {
            "seconds": plan.duration.seconds,
            "by": plan.duration.by,
            "at_least": plan.duration.at_least,
        },
        "spaces": [_space_json(one) for one in plan.spaces],
        "disk_free_bytes": plan.capacity.disk_free_bytes,
        "disk_left_before_read_only_bytes": room_left(plan.capacity),
        "memory_used_bytes": plan.capacity.memory_used_bytes,
        "memory_limit_bytes": plan.capacity.memory_limit_bytes,
        "tiers": [{"name": tier.name, "documents": tier.total, "weight": tier.weight} for tier in plan.tiers],
        "probes": [asdict(one) for one in planned.probed],
        "risks": [
            {"severity": risk.severity, "name": risk.name, "what": risk.what, "next": risk.next_step}
            for risk in planned.risks
        ],
        "summary": sentence(plan),
        "next": next_step(planned),
    }


def _space_json(one: SpaceSize) -> dict[str, JSON]:
    return {
        "version": one.name,
        "stage": one.stage or None,
        "objects": one.objects,
        "vector_bytes": one.vectors,
        "index_bytes": one.index,
        "content_bytes": one.contents,
        "lookup_bytes": one.lookups,
        "disk_bytes": one.disk,
        "memory_bytes": one.memory,
    }
