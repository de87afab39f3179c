"""An embedding endpoint that begins to answer wrongly, in every way, under one worker with a version for each.

Never a wrong vector stored, never a healthy document in the dead letters; afterwards everything is made up for.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from connectors.kafka.headers import Headed
from connectors.services import Addresses
from streams.migration.sweep import Sweep
from streams.state import Failure
from tests.badinput.speak import crossfade
from tests.badinput.tei import BEHAVIOURS, DIMENSIONS, GUILTY, ON_THE_WIRE, Misbehaving, misbehaving
from tests.conftest import COMPACTED
from tests.deployment import COLLECTION, Deployment, Event, deployed

CANARY = "CANARYt4w8"
SECRET = "SECRETm3x7"
STOP = {
    "dimension": "gives 9 dimensions, the space was built with 8",
    "ragged": "vectors of different sizes",
    "count": "items for",
    "too_few": "items for",
    "nan": "not JSON",
    "infinity": "not JSON",
    "overflow": "not finite",
    "nulls": "no list of numbers",
    "strings": "no list of numbers",
    "zeros": "serves another model than the space was built with: its vector for a probe text has cosine 0.0000",
    "html": "with text/html, not JSON",
    "half_json": "not JSON",
    "object": "no list for",
    "redirect": "answered 307, a redirect",
    "forbidden": "answered 403",
    "refuses": "refuses every text, also a plain sentence",
    "oversized": "replied more than",
}
WAIT = {"down": "answered 503", "broken": "answered 500", "cut": "broke off", "silent": "did not reply in time"}
ALONE = {"one_zero": "zero vector", "refuses_one": "answered 413"}
GOOD = {"sound"}


@dataclass(slots=True)
class After:
    failures: dict[str, Failure | None] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    before: dict[str, dict[str, str]] = field(default_factory=dict)
    during: dict[str, dict[str, str]] = field(default_factory=dict)
    healed: dict[str, dict[str, str]] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    dead: dict[str, list[Headed]] = field(default_factory=dict)
    oracle: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    said: str = ""
    sent: int = 0
    keys: set[str] = field(default_factory=set)


def test_every_behaviour_has_its_class() -> None:
    assert STOP.keys() | WAIT.keys() | ALONE.keys() | GOOD == BEHAVIOURS.keys() | set(ON_THE_WIRE)


@pytest.fixture(scope="module")
def after(services: Addresses, tmp_path_factory: pytest.TempPathFactory) -> Iterator[After]:
    topic = f"endpoints-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": services.kafka})
    admin.create_topics([NewTopic(topic, 1, 1, config=COMPACTED)])[topic].result(timeout=30)
    try:
        yield asyncio.run(everything(services, tmp_path_factory.mktemp("endpoints"), topic))
    finally:
        admin.delete_topics([topic])[topic].result(timeout=30)


async def everything(services: Addresses, folder: Path, topic: str) -> After:
    tag = uuid.uuid4().hex[:8]
    names = [*GOOD, *STOP, *WAIT, *ALONE]
    async with (
        misbehaving() as endpoint,
        deployed(services, folder, f"ep-{tag}", topic, f"Ep_{tag}", {"text": {"fields": ["text"]}}) as d,
    ):
        for name in names:
            d.add_version(
                name,
                {
                    "embedder": {
                        "provider": "tei",
                        "url": f"{endpoint.url}/{name}",
                        "model": name,
                        "api_key": SECRET,
                        "timeout_s": 1.5,
                        "max_batch": 4,
                    },
                    "dimensions": DIMENSIONS,
                },
            )
        d.start_worker()
        for name in names:
            await d.until_stage(name, "ready", 180)
        return await misbehave(d, endpoint, names)


def some(form: str) -> list[Event]:
    texts = [f"document {n} {form} {CANARY}" for n in range(9)] + [
        f"{GUILTY if form == 'later' else ''} {form} {CANARY}"
    ]
    return [(f"k{n}", {"text": text}, None) for n, text in enumerate(texts)]


async def misbehave(d: Deployment, endpoint: Misbehaving, names: list[str]) -> After:
    after = After()
    await d.produce(some("first"))
    for name in names:
        await d.until_live(name)
        after.before[name] = await d.stored(name)
    endpoint.well = False
    await d.produce(some("later"))
    for name in [*GOOD, *ALONE]:
        await d.until_live(name)
    async with asyncio.timeout(120):
        await d.state.wait_for(lambda state: all(d.build(name).failure is not None for name in STOP))

    def reason(name: str) -> str:
        return next((r.reason for r in d.progress.partitions(d.build(name)) if r.status == "waiting"), "")

    await d.until(lambda: all(WAIT[name] in reason(name) for name in WAIT))
    for name in names:
        after.failures[name] = d.build(name).failure
        after.during[name] = await d.stored(name)
    after.waiting = {name: reason(name) for name in names}
    after.said = await crossfade(d, "status", COLLECTION)
    for name in STOP:
        after.statuses[name] = await crossfade(d, "status", COLLECTION, name)
    endpoint.well = True
    for name in STOP:
        assert (await d.ask("resume", name)).ok
    for name in names:
        await d.until_live(name)
        after.healed[name] = await d.stored(name)
        after.sweeps[name] = await d.verify(name)
    after.oracle = await d.oracle()
    async for item in d.out.dead_letters():
        after.dead.setdefault(item.headers["version"], []).append(item)
    after.said += d.logs()
    after.sent, after.keys = endpoint.sent, endpoint.keys
    return after


@pytest.mark.parametrize("name", STOP)
def test_a_reply_no_model_would_give_stops_its_version_with_the_cause(after: After, name: str) -> None:
    failure = after.failures[name]
    assert failure is not None
    assert STOP[name] in failure.cause
    assert failure.next_step
    assert failure.cause.split("\n")[0][:60] in after.statuses[name]


@pytest.mark.parametrize("name", WAIT)
def test_an_outage_is_waited_out(after: After, name: str) -> None:
    assert after.failures[name] is None
    assert WAIT[name] in after.waiting[name]


@pytest.mark.parametrize("name", [*STOP, *WAIT])
def test_nothing_of_it_is_stored_and_no_document_is_blamed(after: After, name: str) -> None:
    assert len(after.before[name]) == 10
    assert after.during[name] == after.before[name]
    assert name not in after.dead


@pytest.mark.parametrize("name", ALONE)
def test_the_guilty_document_alone_goes_to_the_dead_letters(after: After, name: str) -> None:
    assert after.failures[name] is None
    (item,) = after.dead[name]
    assert item.record.key == b"k9"
    assert GUILTY.encode() in (item.record.value or b"")
    assert item.headers["cause"] == "content_rejected"
    assert ALONE[name] in item.headers["error"]
    sweep = after.sweeps[name]
    assert sweep.clean
    assert sweep.held == 1
    assert after.healed[name]["k9"] == after.before[name]["k9"]
    assert {k: v for k, v in after.healed[name].items() if k != "k9"} == {
        k: v for k, v in after.oracle.items() if k != "k9"
    }


@pytest.mark.parametrize("name", [*GOOD, *STOP, *WAIT])
def test_everything_is_there_once_the_endpoint_is_well_again(after: After, name: str) -> None:
    assert after.healed[name] == after.oracle
    sweep = after.sweeps[name]
    assert (sweep.clean, sweep.held, sweep.checked) == (True, 0, 10)


def test_an_endless_reply_is_cut_off(after: After) -> None:
    assert 1_000_000 < after.sent < 40_000_000


def test_no_text_and_no_key_in_logs_causes_or_output(after: After) -> None:
    assert after.keys == {f"Bearer {SECRET}"}
    causes = " ".join(failure.model_dump_json() for failure in after.failures.values() if failure)
    errors = " ".join(value for items in after.dead.values() for item in items for value in item.headers.values())
    for words in (CANARY, SECRET):
        assert words not in after.said + causes + errors + " ".join(after.waiting.values())
