"""How to reach a Kafka cluster, and the librdkafka settings of each kind of client.

It must never let a secret out: not in `repr`, not in an error, not in a log line.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from connectors.errors import ConfigurationError

Conf = dict[str, str | int | float | bool]

MIN_PREFETCH_BYTES = 1024 * 1024  # what brokers put into one answer for a partition

# What the connectors decide themselves; a setting that contradicts it would break a rule without a word.
FIXED = frozenset(
    {
        "bootstrap.servers",
        "group.id",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "auto.offset.reset",
        "isolation.level",
        "enable.partition.eof",
        "partition.assignment.strategy",
        "group.protocol",
        "session.timeout.ms",
        "max.poll.interval.ms",
        "socket.timeout.ms",
        "enable.idempotence",
        "acks",
        "partitioner",
        "transactional.id",
        "message.max.bytes",
        "logger",
        "error_cb",
    }
)


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """One cluster. `client` holds further librdkafka settings (security.*, sasl.*, ssl.*, client.rack ...).

    `session_timeout_s`: how long a silent group member keeps its partitions. `max_poll_interval_s`: how long a member
    may go without a read. `request_timeout_s`: how long any one request may take. `reader_group`: the group name that
    bounded reads and tails name to the broker (they never join or commit; clusters with ACLs need READ on it).
    """

    bootstrap_servers: str
    client: Mapping[str, str] = field(default_factory=dict, repr=False)
    session_timeout_s: float = 45.0
    max_poll_interval_s: float = 300.0
    request_timeout_s: float = 15.0
    fetch_wait_s: float = 0.1
    prefetch_bytes: int = 8 * 1024 * 1024  # of one consumer; a worker has one for each partition that it replays
    max_message_bytes: int = 1_000_000_000  # before compression; what a topic takes is the topic's to say
    reader_group: str = "crossfade.readers"

    def __post_init__(self) -> None:
        if not self.bootstrap_servers.strip():
            raise ConfigurationError(
                "kafka.bootstrap_servers is empty", next_step="set it to host:port of one or more brokers"
            )
        fixed = sorted(FIXED & set(self.client))
        if fixed:
            raise ConfigurationError(
                f"Crossfade sets these Kafka client settings itself: {', '.join(fixed)}",
                next_step="remove them from kafka.client in the configuration",
            )
        if self.max_poll_interval_s < self.session_timeout_s:
            raise ConfigurationError(
                f"kafka.max_poll_interval_s ({self.max_poll_interval_s:g}) is below"
                f" kafka.session_timeout_s ({self.session_timeout_s:g})",
                next_step="raise kafka.max_poll_interval_s; librdkafka refuses such a pair",
            )

    def base(self) -> Conf:
        """Settings every client shares."""
        return {
            **self.client,
            "bootstrap.servers": self.bootstrap_servers,
            "socket.timeout.ms": round(self.request_timeout_s * 1000),
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 2000,
        }

    def admin(self) -> Conf:
        return self.base()

    def consumer(self, group: str, prefetch_bytes: int | None = None) -> Conf:
        """A consumer that decides nothing by itself: no stored offsets, no commits, no reset, committed data only.
        It fetches ahead up to `prefetch_bytes` of records, or as the settings say, and what one more answer brings.

        End-of-partition events are on: they alone carry a position across transaction markers and gaps at the end
        of the log (rules 6 and 7).
        """
        ahead = max(MIN_PREFETCH_BYTES, self.prefetch_bytes if prefetch_bytes is None else prefetch_bytes)
        return {
            **{
                "fetch.queue.backoff.ms": 5,  # the default second stalls a reader faster than its prefetch queue
                "fetch.error.backoff.ms": 100,
                "queued.min.messages": 100_000,
                "queued.max.messages.kbytes": ahead // 1024,
                "fetch.max.bytes": ahead,  # else an answer for many partitions may hold 50 MB
                "fetch.wait.max.ms": round(self.fetch_wait_s * 1000),
                "heartbeat.interval.ms": max(500, min(3000, round(self.session_timeout_s * 1000 / 4))),
            },
            **self.base(),
            "group.id": group,
            "session.timeout.ms": round(self.session_timeout_s * 1000),
            "max.poll.interval.ms": round(self.max_poll_interval_s * 1000),
            "partition.assignment.strategy": "cooperative-sticky",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }

    def producer(self, *, linger_ms: int = 5, transactional_id: str | None = None) -> Conf:
        """Idempotent, all replicas, keys placed as Java producers place them (rule 1)."""
        conf: Conf = {
            # zstd: what another producer's zstd squeezed into the documents topic must fit into the dead letters too
            **{"linger.ms": linger_ms, "compression.type": "zstd", "topic.metadata.propagation.max.ms": 5000},
            **self.base(),
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "message.max.bytes": self.max_message_bytes,
        }
        if transactional_id is not None:
            conf["transactional.id"] = transactional_id
        else:
            conf["message.timeout.ms"] = round(self.request_timeout_s * 4000)
        return conf


class SayOnce(logging.Filter):
    """Lets one line of a kind through each `every_s`: librdkafka repeats itself for as long as a broker is away."""

    def __init__(self, every_s: float = 60.0, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._now = now
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        # Ports, counters, client numbers and times differ from line to line; the kind of line does not.
        kind = re.sub(r"\d+", "#", record.getMessage())[:300]
        now = self._now()
        last = self._said.get(kind)
        if last is not None and now - last < self._every_s:
            return False
        if len(self._said) > 1000:
            self._said.clear()
        self._said[kind] = now
        return True


def client_logger() -> logging.Logger:
    """The logger librdkafka's own lines go to: `connectors.kafka.librdkafka`, with `SayOnce` on it."""
    logger = logging.getLogger("connectors.kafka.librdkafka")
    if not any(isinstance(known, SayOnce) for known in logger.filters):
        logger.addFilter(SayOnce())
    return logger
