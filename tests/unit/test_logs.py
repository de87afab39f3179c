"""Log lines: what they are about stands on every one, in words or as JSON."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import re
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from connectors.kafka.thread import ClientThread
from streams.cli import cli, logs
from streams.subject import Subject, about, about_partition, current

ABOUT = Subject("docs", "v1", "0e6aeaeaa572", 3)
LOG = logging.getLogger("streams.embed_agent")


def logged(form: str, work: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> list[str]:
    undo = logs.to_stderr("info", form)
    try:
        contextvars.copy_context().run(work)
    finally:
        undo()
    return capsys.readouterr().err.splitlines()


def say() -> None:
    LOG.info("nothing in particular")
    with about(ABOUT):
        LOG.warning("docs/v1: %s", "waits\n  next: go")
        with about_partition(2):
            LOG.info("a replay")
        LOG.info("a dead letter", extra={"partition": 7})
        try:
            raise ValueError("seven")
        except ValueError as error:
            LOG.error("failed", exc_info=error)


def test_a_line_of_json_has_the_version_in_fields(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in logged("json", say, capsys)]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
        assert line.pop("logger") == "streams.embed_agent"
    known = {"collection": "docs", "version": "v1", "fingerprint": "0e6aeaeaa572", "epoch": 3}
    assert lines[:4] == [
        {"level": "info", "message": "nothing in particular"},
        {"level": "warning", "message": "docs/v1: waits\n  next: go", **known},
        {"level": "info", "message": "a replay", **known, "partition": 2},
        {"level": "info", "message": "a dead letter", **known, "partition": 7},
    ]
    assert lines[4]["error"] == "ValueError"
    assert lines[4]["traceback"].endswith("ValueError: seven")
    assert lines[4]["version"] == "v1"


def test_a_plain_line_has_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    lines = logged("plain", say, capsys)
    assert [line.partition("streams.embed_agent")[2] for line in lines[:4]] == [
        ": nothing in particular",
        " [docs/v1@0e6aeaeaa572 epoch 3]: docs/v1: waits | next: go",
        " [docs/v1@0e6aeaeaa572 epoch 3 partition 2]: a replay",
        " [docs/v1@0e6aeaeaa572 epoch 3 partition 7]: a dead letter",
    ]
    assert len(lines) == 5


async def test_tasks_inherit_what_they_are_about() -> None:
    async def child() -> Subject:
        await asyncio.sleep(0)
        return current()

    with about(ABOUT):
        task = asyncio.create_task(child())
        in_thread = await asyncio.to_thread(current)
    assert await task == in_thread == ABOUT
    assert current() == Subject()


async def test_what_a_kafka_client_calls_back_inherits_it_too() -> None:
    thread, loop = ClientThread("test"), asyncio.get_running_loop()

    async def assigned() -> Subject:
        return await asyncio.create_task(tasked())

    async def tasked() -> Subject:
        return current()

    with about(ABOUT):
        found = await thread.run(lambda: (current(), thread.ask(loop, assigned()).result()))
    other = await thread.run(current)
    await thread.stop()
    assert found == (ABOUT, ABOUT)
    assert other == Subject()


@pytest.mark.parametrize("how", ["option", "environment"])
def test_an_error_is_a_line_of_json_too(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--config", "/nowhere/at-all.yaml", "worker"]
    if how == "option":
        arguments = ["--log-format", "json", *arguments]
    else:
        monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    line = json.loads(result.stderr)
    assert line["level"] == "error"
    assert line["message"].startswith("no configuration file at ")
    assert "crossfade init" in line["next"]
