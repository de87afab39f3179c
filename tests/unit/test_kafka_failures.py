"""That no error of librdkafka or of a broker reaches the pipeline unmapped, and that secrets never show.

No broker is asked.
"""

from __future__ import annotations

import logging
import traceback

import pytest
from confluent_kafka import KafkaError, KafkaException

from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    Fenced,
    IdentityChanged,
    NotFound,
    Overloaded,
    Terminal,
    Throttled,
    Transient,
    UnknownOutcome,
    Unreachable,
)
from connectors.kafka.failures import KIND_OF_CODE, NEVER_ASKED, LeaderUnknown, foreign, kind_of, mapped
from connectors.kafka.producer import produce_many
from connectors.kafka.settings import KafkaSettings, SayOnce
from connectors.kafka.topics import Topics

CODES = {name: getattr(KafkaError, name) for name in dir(KafkaError) if name.isupper()}


def test_every_code_is_mapped_or_named_as_never_asked_for() -> None:
    assert len(CODES) > 150
    unmapped = {name for name, code in CODES.items() if code not in KIND_OF_CODE}
    assert unmapped - NEVER_ASKED == set(), "put these into connectors/kafka/failures.py"
    assert unmapped == NEVER_ASKED


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_ALL_BROKERS_DOWN", Unreachable),
        ("_TRANSPORT", Unreachable),
        ("NOT_LEADER_FOR_PARTITION", LeaderUnknown),
        ("_MSG_TIMED_OUT", UnknownOutcome),
        ("REQUEST_TIMED_OUT", UnknownOutcome),
        ("THROTTLING_QUOTA_EXCEEDED", Throttled),
        ("NOT_ENOUGH_REPLICAS", Overloaded),
        ("UNKNOWN_TOPIC_OR_PART", NotFound),
        ("TOPIC_AUTHORIZATION_FAILED", AccessDenied),
        ("SASL_AUTHENTICATION_FAILED", AccessDenied),
        ("MSG_SIZE_TOO_LARGE", ContentRejected),
        ("UNKNOWN_MEMBER_ID", Fenced),
        ("ILLEGAL_GENERATION", Fenced),
        ("FENCED_INSTANCE_ID", Fenced),
        ("_MAX_POLL_EXCEEDED", Fenced),
        ("PRODUCER_FENCED", Fenced),
        ("_AUTO_OFFSET_RESET", IdentityChanged),
        ("REBALANCE_IN_PROGRESS", Transient),
        ("_INVALID_ARG", ConfigurationError),
    ],
)
def test_the_codes_that_decide_something(name: str, kind: type[CrossfadeError]) -> None:
    failure = mapped(KafkaError(CODES[name]), "reading topic docs")
    assert type(failure) is kind
    assert "reading topic docs" in failure.message
    assert failure.next_step


def test_a_read_has_no_unknown_outcome() -> None:
    assert type(mapped(KafkaError(KafkaError._TIMED_OUT), "x", reading=True)) is Unreachable


def test_a_fatal_error_is_never_retried() -> None:
    assert kind_of(KafkaError(KafkaError.UNKNOWN, fatal=True)) is Terminal
    assert kind_of(KafkaError(KafkaError._FENCED, fatal=True)) is Fenced


def test_a_code_of_tomorrow_is_retried_only_if_librdkafka_says_so() -> None:
    assert kind_of(KafkaError(9_999, retriable=True)) is Transient
    assert kind_of(KafkaError(9_999)) is Terminal


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (KafkaException(KafkaError(KafkaError._TRANSPORT)), Unreachable),
        (KafkaException("no error inside"), Terminal),
        (BufferError("Local: Queue full"), Overloaded),
        (RuntimeError("Consumer closed"), Terminal),
    ],
)
def test_what_confluent_kafka_raises_is_mapped(raised: Exception, kind: type[CrossfadeError]) -> None:
    with pytest.raises(kind) as caught, foreign("reading"):
        raise raised
    assert type(caught.value) is kind
    assert caught.value.__cause__ is raised


def test_settings_show_no_secret() -> None:
    settings = KafkaSettings("broker:9092", client={"sasl.password": "hunter2", "client.id": "me"})
    assert "hunter2" not in repr(settings)
    assert settings.consumer("group")["sasl.password"] == "hunter2"


def test_what_is_fetched_ahead_is_bounded_in_bytes() -> None:
    settings = KafkaSettings("broker:9092", prefetch_bytes=4 * 2**20)
    conf = settings.consumer("group")
    assert (conf["queued.max.messages.kbytes"], conf["fetch.max.bytes"]) == (4 * 1024, 4 * 2**20)
    less = settings.consumer("group", prefetch_bytes=2**20)
    assert (less["queued.max.messages.kbytes"], less["fetch.max.bytes"]) == (1024, 2**20)
    assert settings.consumer("group", prefetch_bytes=1)["fetch.max.bytes"] == 2**20  # what librdkafka allows


@pytest.mark.parametrize("name", ["enable.auto.commit", "auto.offset.reset", "isolation.level", "acks"])
def test_what_the_rules_decide_cannot_be_set(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        KafkaSettings("broker:9092", client={name: "x"})


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="bootstrap_servers") as raised:
        KafkaSettings(" ")
    assert raised.value.next_step
    with pytest.raises(ConfigurationError, match="max_poll_interval_s"):
        KafkaSettings("broker:9092", session_timeout_s=50.0, max_poll_interval_s=40.0)


def test_a_setting_librdkafka_does_not_know_is_a_configuration_error_without_its_value() -> None:
    misplaced = "hunter".upper()  # in capitals, so that a traceback's lines of source do not hold it
    wrong = KafkaSettings("broker:9092", client={"sasl.pasword": "hunter2"})
    with pytest.raises(ConfigurationError, match=r"sasl\.pasword") as raised:
        Topics(wrong)
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ConfigurationError):
        produce_many(wrong, "topic", [])
    with pytest.raises(ConfigurationError) as raised:
        Topics(KafkaSettings("broker:9092", client={"security.protocol": misplaced}))
    assert misplaced not in "".join(traceback.format_exception(raised.value))


def test_the_same_line_is_said_once_a_minute() -> None:
    now = [0.0]
    once = SayOnce(60.0, now=lambda: now[0])

    def said(text: str) -> bool:
        return once.filter(logging.LogRecord("x", logging.INFO, "", 0, text, (), None))

    assert said("broker 127.0.0.1:9092 refused (after 3ms)")
    assert not said("broker 127.0.0.1:9092 refused (after 12ms)")
    assert said("another line")
    now[0] = 61.0
    assert said("broker 127.0.0.1:9092 refused (after 4ms)")
