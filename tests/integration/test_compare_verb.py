"""`crossfade compare` on a real topic: two hashing versions on Cranfield, and an endpoint that costs money."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from connectors.kafka.producer import produce_many
from connectors.kafka.settings import KafkaSettings
from connectors.services import Addresses
from streams.cli import cli
from tests.conftest import MakeTopic
from tests.keyed_endpoint import DIMENSIONS, Endpoint, keyed_endpoint
from tests.terminal import Terminal

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("CROSSFADE_DATA", ROOT.parent / "shared" / "data")) / "cranfield"
V1 = {"embedder": {"provider": "hashing", "word_ngrams": None, "char_ngrams": [3, 5]}, "dimensions": 64}
V2 = {"embedder": {"provider": "hashing"}, "dimensions": 512}
SUBJECTS = ["wings", "boundary layers", "shock waves", "heat transfer", "flutter", "buckling", "nozzles", "re-entry"]


class Desk:
    """One configuration file, and `compare`."""

    def __init__(self, folder: Path, services: Addresses, topic: str) -> None:
        self.folder = folder
        self.path = folder / "crossfade.yaml"
        self.raw: dict[str, Any] = {
            "kafka": {"bootstrap_servers": services.kafka},
            "collections": {
                "docs": {"topic": topic, "text": {"fields": ["title", "text"]}, "versions": {"v1": V1, "v2": V2}}
            },
        }
        self.save()

    def save(self, **more: object) -> None:
        self.raw |= more
        self.path.write_text(yaml.safe_dump(self.raw))

    def version(self, name: str, version: Mapping[str, object]) -> None:
        self.raw["collections"]["docs"]["versions"][name] = version
        self.save()

    def run(self, *args: str) -> Result:
        return CliRunner().invoke(cli, ["--config", str(self.path), "compare", "docs", *args], prog_name="crossfade")

    def done(self, *args: str) -> str:
        result = self.run(*args)
        assert result.exit_code == 0, result.output
        return result.stdout

    def data(self, *args: str) -> dict[str, Any]:
        found = json.loads(self.done(*args, "--json"))
        assert isinstance(found, dict)
        return found


@pytest.fixture
def desk(tmp_path: Path, services: Addresses, make_topic: MakeTopic) -> Desk:
    """Documents about eight subjects, each edited once and some deleted, with a title and a text."""
    topic = make_topic(2)
    events: list[tuple[bytes, bytes | None, int | None]] = []
    for turn in ("an early form of it", "the form that counts"):
        for i in range(120):
            subject = SUBJECTS[i % len(SUBJECTS)]
            value = {
                "title": f"On {subject}, part {i}",
                "text": f"{turn}: {subject} at high speed {i}, measured {subject} " + f"in case {i * 7919} " * 4,
            }
            events.append((f"k{i}".encode(), json.dumps(value).encode(), None))
    events += [(f"k{i}".encode(), None, None) for i in range(100, 120)]
    events.append((b"broken", b"{not json", None))
    produce_many(KafkaSettings(bootstrap_servers=services.kafka), topic, iter(events))
    return Desk(tmp_path, services, topic)


def golden_file(folder: Path, queries: int = 40, **more: Mapping[str, float]) -> Path:
    path = folder / "golden.jsonl"
    lines = [{"id": f"q{i}", "query": f"{SUBJECTS[i % 8]} part {i}", "relevant": {f"k{i}": 1}} for i in range(queries)]
    lines += [{"id": name, "query": name, "relevant": relevant} for name, relevant in more.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not beside this checkout")
def test_two_versions_on_cranfield(tmp_path: Path, services: Addresses, make_topic: MakeTopic) -> None:
    topic = make_topic(3)
    with (DATA / "documents.jsonl").open() as file:
        records = [json.loads(line) for line in file]
    produce_many(
        KafkaSettings(bootstrap_servers=services.kafka),
        topic,
        ((one["key"].encode(), json.dumps(one["value"]).encode(), None) for one in records),
    )
    desk = Desk(tmp_path, services, topic)
    found = desk.data("v1", "v2", "--golden", str(DATA / "queries.jsonl"), "--sample", "300")
    assert found["documents"] == 1400
    assert found["sample"]["random"] + found["sample"]["unusable"].get("empty_text", 0) >= 300
    assert found["sample"]["documents"] >= 825  # what is judged relevant is all there
    assert found["queries"] == 225
    (difference,) = found["differences"]
    assert (difference["version"], difference["baseline"], difference["verdict"]) == ("v2", "v1", "better")
    first, second = found["versions"]
    assert first["quality"]["ndcg"]["high"] < second["quality"]["ndcg"]["low"]
    assert second["vector_bytes"] == 8 * first["vector_bytes"]
    exact = first["all_tokens"]
    whole = desk.data("v1", "--golden", str(DATA / "queries.jsonl"), "--sample", "1400")["versions"][0]["all_tokens"]
    assert abs(exact - whole) < 0.1 * whole  # 300 documents of texts that differ fourfold in length
    assert found["next"] == "crossfade plan docs v2"

    swapped = desk.data("v2", "v1", "--golden", str(DATA / "queries.jsonl"), "--sample", "300")
    assert swapped["differences"][0]["verdict"] == "worse"
    assert swapped["versions"][0]["quality"]["ndcg"] == second["quality"]["ndcg"]  # the same sample, the same figures

    said = desk.done("v1", "v2", "--sample", "300")
    assert "each query is a document's title; it is left out of the embedded text" in said
    assert "\nv2 is better than v1: worth its migration (nDCG@10 +" in said


def test_titles_as_queries_and_only_current_documents(desk: Desk) -> None:
    found = desk.data("v1", "v2", "--sample", "50")
    assert found["documents"] == 101  # with the broken one, which only its parsing tells
    assert (found["title"], found["golden"]) == ("title", "known-item queries from field title")
    assert found["queries"] == found["sample"]["documents"] == found["sample"]["random"]
    everything = desk.data("v1")
    assert (everything["sample"]["documents"], everything["sample"]["unusable"]) == (100, {"malformed_json": 1})
    assert everything["differences"] == []
    assert 95 <= everything["versions"][0]["all_objects"] <= 101


def test_judged_documents_are_in_the_sample_whatever_its_size(desk: Desk) -> None:
    golden = golden_file(desk.folder, gone={"k110": 1, "k5": 2}, never={"nobody": 1})
    found = desk.data("v1", "v2", "--golden", str(golden), "--sample", "1")
    assert found["queries"] == 42
    assert found["sample"]["documents"] in (40, 41)  # k0 to k39, and the random one, which may be among them
    assert found["sample"]["judged_missing"] == 2
    assert "2 judged documents not in the topic" in desk.done("v1", "--golden", str(golden), "--sample", "1")


def test_the_golden_set_of_the_configuration_is_the_default(desk: Desk) -> None:
    desk.raw["collections"]["docs"]["gate"] = {"golden": golden_file(desk.folder).name, "k": 3}
    desk.save()
    found = desk.data("v1")
    assert (found["queries"], found["k"], found["title"]) == (40, 3, None)
    assert desk.data("v1", "--title", "title", "-k", "5")["title"] == "title"


def priced(endpoint: Endpoint, **more: object) -> dict[str, object]:
    embedder = {"provider": "tei", "url": endpoint.url, "model": "e5", "price_per_million_tokens": 50.0}
    return {"embedder": embedder | more, "dimensions": DIMENSIONS}


def test_nothing_is_spent_unasked(desk: Desk) -> None:
    with keyed_endpoint() as endpoint:
        desk.version("paid", priced(endpoint))
        refused = desk.run("v1", "paid", "--sample", "90")
        assert refused.exit_code == 1
        assert "paid will embed" in refused.stderr
        assert "this costs money, and there is no terminal to ask at" in refused.stderr
        assert "  next: crossfade compare docs v1 paid --sample 90 --yes" in refused.stderr
        assert endpoint.embedded == []

        t = Terminal(desk.folder, ["--config", str(desk.path), "compare", "docs", "v1", "paid"])
        t.answer("Go on? [y/N]:", "n")
        assert t.end() == 1
        assert "nothing was embedded" in t.seen
        assert endpoint.embedded == []

        t = Terminal(desk.folder, ["--config", str(desk.path), "compare", "docs", "v1", "paid"])
        t.answer("Go on? [y/N]:", "y")
        assert t.end() == 0
        assert "price" not in t.seen
        once = len(endpoint.embedded)
        assert once >= 100

        found = desk.data("v1", "paid", "--yes")
        assert len(endpoint.embedded) == 2 * once
        paid = found["versions"][1]
        assert paid["sample_usd"] == pytest.approx(paid["sample_tokens"] * 50 / 1e6)
        assert paid["all_usd"] == pytest.approx(paid["all_tokens"] * 50 / 1e6)

        desk.version("paid", priced(endpoint, price_per_million_tokens=None))
        assert "nobody has said the price of paid" in desk.run("v1", "paid").stderr
        assert len(endpoint.embedded) == 2 * once


def test_ctrl_c_at_the_question_spends_nothing(desk: Desk) -> None:
    with keyed_endpoint() as endpoint:
        desk.version("paid", priced(endpoint))
        t = Terminal(desk.folder, ["--config", str(desk.path), "compare", "docs", "v1", "paid"])
        t.interrupt("Go on? [y/N]:")
        assert t.end() != 0
        assert endpoint.embedded == []


def test_a_budget_is_a_bound_here_too(desk: Desk) -> None:
    with keyed_endpoint() as endpoint:
        desk.version("paid", {**priced(endpoint), "budget_usd": 0.0001})
        refused = desk.run("v1", "paid", "--yes")
        assert refused.exit_code == 1
        assert "more than paid's budget_usd 0.0001" in refused.stderr
        assert endpoint.embedded == []


def test_real_texts_are_kept_in_the_vector_cache_and_texts_without_titles_are_not(desk: Desk) -> None:
    golden = str(golden_file(desk.folder))
    desk.save(vector_cache={"path": "vectors.sqlite"})
    with keyed_endpoint() as endpoint:
        desk.version("paid", priced(endpoint))
        desk.data("paid", "--yes")
        assert not (desk.folder / "vectors.sqlite").exists()
        desk.data("paid", "--yes", "--golden", golden)
        before = len(endpoint.embedded)
        again = desk.data("paid", "--yes", "--golden", golden)["versions"][0]
    assert (again["chunks_embedded"], again["chunks_cached"], again["sample_usd"]) == (0, 100, 0.0)
    assert len(endpoint.embedded) - before == 41  # the queries, the first of them twice
    assert again["all_tokens"] > 0
