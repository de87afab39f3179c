"""The command line's frame: fast help, exit statuses, messages for people, and quiet logs."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from connectors.errors import ConfigurationError, CrossfadeError, Refused, Unreachable
from streams.cli import VERBS, cli, logs
from streams.cli.output import count, duration, moment, plain, size, usd

ROOT = Path(__file__).parents[2]
CONFIG = """
kafka: {bootstrap_servers: "127.0.0.1:1"}
weaviate: {http: "http://127.0.0.1:1", grpc: "127.0.0.1:2"}
collections:
  docs: {topic: docs, text: {fields: [text]}, versions: {v1: {embedder: {provider: hashing}, dimensions: 8}}}
"""


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="crossfade")


@pytest.fixture
def configured(tmp_path: Path) -> str:
    path = tmp_path / "crossfade.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Makes the verb `status` raise what the test puts in."""
    errors: list[BaseException] = []

    @click.command()
    def status() -> None:
        raise errors[0]

    monkeypatch.setattr("streams.cli.status.status", status)
    return errors


def test_help_loads_no_client_library() -> None:
    script = (
        "import sys\nfrom streams.cli import cli\n"
        "try:\n    cli(['--help'], prog_name='crossfade')\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'weaviate', 'confluent_kafka', 'faust', 'numpy', 'pydantic', 'rich', 'grpc'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


def test_status_loads_no_client_that_it_does_not_use() -> None:
    script = (
        "import sys\nimport streams.cli.status\n"
        "heavy = {'weaviate', 'faust', 'grpc'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_does_with_an_example(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0, result.output
    assert f"Example: crossfade {verb}" in result.stdout


@pytest.mark.parametrize("verb", ["status", "verify", "evaluate", "search", "explain", "history"])
def test_every_read_verb_takes_json(verb: str) -> None:
    assert "--json" in call(verb, "--help").stdout


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["status", "-w", "--json"],
        ["status", "docs", "v2", "--until", "ready", "--json"],
        ["status", "docs", "--until", "ready"],
        ["status", "docs", "v2", "--until", "retired"],
        ["produce", "docs", "/no/such/file"],
        ["set", "docs", "v1", "colour=red"],
        ["set", "docs", "v1", "replay_rate=fast"],
        ["set", "docs", "v1", "replay_rate=nan"],
        ["set", "docs", "v1", "replay_rate=inf"],
        ["search", "docs", "q", "-k", "0"],
        ["cutover", "docs"],
        ["start", "docs", "v1", "--rate", "0"],
        ["rollback", "docs", "--max-lag", "-1"],
    ],
)
def test_wrong_usage_exits_2(args: list[str], configured: str) -> None:
    result = call("--config", configured, *args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""


def test_a_missing_configuration_exits_2_and_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSFADE_CONFIG", raising=False)
    result = call("--config", "/no/such.yaml", "status", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: no configuration file at /no/such.yaml")
    assert "CROSSFADE_CONFIG" in result.stderr
    assert "\n  next: " in result.stderr


def test_documents_can_be_sent_before_there_is_a_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To the Kafka of `crossfade up`, which is what is missing here; a file that is named has to be there."""
    monkeypatch.delenv("CROSSFADE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.jsonl").write_text("")
    result = call("produce", "articles", "events.jsonl")
    assert result.exit_code == 2
    assert "crossfade up" in result.stderr
    assert "no configuration file" not in result.stderr
    assert "no configuration file" in call("--config", "mine.yaml", "produce", "articles", "events.jsonl").stderr
    assert "no configuration file" in call("status").stderr


def test_a_wrong_configuration_exits_2_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("kafka: {}\ncolections: {}\n")
    result = call("--config", str(path), "status")
    assert result.exit_code == 2
    assert f"{path}:2" in result.stderr


def test_the_environment_names_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_CONFIG", "/from/the/environment.yaml")
    assert "/from/the/environment.yaml" in call("status").stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("wrong", next_step="correct it"), 2),
        (Refused("not now", next_step="wait"), 1),
        (Unreachable("nobody there", next_step="start it"), 1),
        (CrossfadeError("something", next_step="look"), 1),
    ],
)
def test_errors_become_a_reason_and_a_next_step(
    raising: list[BaseException], error: CrossfadeError, status: int
) -> None:
    raising.append(error)
    result = call("status")
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr == f"error: {error.message}\n  next: {error.next_step}\n"


def test_an_unexpected_error_shows_no_traceback_unless_asked(raising: list[BaseException]) -> None:
    raising.append(KeyError("lost"))
    result = call("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: unexpected KeyError")
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    shown = call("--debug", "status")
    assert shown.exit_code == 1
    assert "Traceback" in shown.stderr


def test_an_interrupt_is_quiet(raising: list[BaseException]) -> None:
    raising.append(KeyboardInterrupt())
    result = call("status")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.4, "59s"), (118, "1m58s"), (3600, "1h00m"), (90_061, "1d01h")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_sizes_and_prices() -> None:
    assert [size(number) for number in (0, 340, 1_200, 4_300_000, 71_900_000_000)] == [
        "0 B",
        "340 B",
        "1.2 kB",
        "4.3 MB",
        "71.9 GB",
    ]
    assert [usd(amount) for amount in (0.0, 0.007743, 0.42, 12.345, 1234.5)] == [
        "0.00",
        "0.00774",
        "0.42",
        "12.35",
        "1,234.50",
    ]


def test_control_characters_never_reach_a_terminal() -> None:
    assert plain("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"
    assert plain("abcdef", 4) == "abc…"


def test_counts_and_moments() -> None:
    assert count(1, "event") == "1 event"
    assert count(1234, "event") == "1,234 events"
    assert moment(0) == "-"
    assert moment(1_700_000_000_000) == "2023-11-14T22:13:20Z"


def test_logs_are_one_line_and_other_libraries_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    undo = logs.to_stderr("info")
    try:
        logging.getLogger("streams.app").info("first\n  next: second")
        logging.getLogger("faust.app").warning("not shown")
        for port in (1, 2, 3):
            logging.getLogger("faust.app").error("Unable to connect to node %d", port)
        logging.getLogger("httpx").info("not shown")
    finally:
        undo()
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(" INFO streams.app: first | next: second")
    assert "Unable to connect" in lines[1]


def test_warnings_of_libraries_are_not_for_operators(configured: str) -> None:
    script = "from streams.cli import cli\ncli(prog_name='crossfade')"
    done = subprocess.run(
        [sys.executable, "-c", script, "--config", configured, "search", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_nothing_answers_within_seconds(configured: str) -> None:
    result = call("--config", configured, "status", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: no Kafka broker answered at 127.0.0.1:1 within 5 s" in result.stderr
    assert "crossfade up" in result.stderr


def test_an_unknown_version_names_the_ones_there_are(configured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers(*_: object) -> None:
        return None

    monkeypatch.setattr("connectors.kafka.topics.Topics.wait_for_broker", answers)
    for args, known in ((["start", "docs", "v9"], "v1"), (["start", "nodocs", "v1"], "docs")):
        result = call("--config", configured, *args)
        assert result.exit_code == 1
        assert known in result.stderr.partition("next:")[2]
