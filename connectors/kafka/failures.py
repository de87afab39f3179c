"""Every error of librdkafka and of a Kafka broker, as one of `connectors.errors`.

It must never guess from a message's words: the code decides, and a test fails when a code is not in the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

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
    Refused,
    Terminal,
    Throttled,
    Transient,
    UnknownOutcome,
    Unreachable,
)


class LeaderUnknown(Unreachable):
    """The broker asked does not lead the partition: a leader has only been chosen, or another one has been since.

    librdkafka asks again by itself when it fetches and produces, but not when it looks for offsets.
    """


Kind = type[CrossfadeError]

_NEXT_STEP: dict[Kind, str] = {
    Unreachable: "check that the broker runs and that kafka.bootstrap_servers is right",
    LeaderUnknown: "try again in a moment; if it goes on, look at the brokers: which of them leads this partition?",
    UnknownOutcome: "the same call is repeated; if it goes on, check the broker's load and kafka.request_timeout_s",
    Throttled: "the cluster's quota asks to slow down; raise the quota or lower the rate",
    Overloaded: "check the brokers' disks and in-sync replicas",
    Transient: "the same call is repeated; if it goes on, look at the broker's log",
    ConfigurationError: "correct the kafka section of the configuration",
    Refused: "stop the group's members, or wait until they have left, then try again",
    NotFound: "create the topic, or correct its name in the configuration",
    AccessDenied: "check the credentials under kafka.client and the ACLs on topic, group and transactional id",
    ContentRejected: "raise the topic's max.message.bytes, or make the record smaller",
    IdentityChanged: "the log is not the one this build began with; `crossfade status` says which build must restart",
    Fenced: "nothing to do here: another member or producer has taken over",
    Terminal: "look at the broker's log for this error",
}

_NAMES: dict[Kind, str] = {
    Unreachable: """_TRANSPORT _RESOLVE _ALL_BROKERS_DOWN _TIMED_OUT_QUEUE _WAIT_COORD _WAIT_CACHE _UNKNOWN_BROKER
        _DESTROY_BROKER _NODE_UPDATE BROKER_NOT_AVAILABLE NETWORK_EXCEPTION
        COORDINATOR_NOT_AVAILABLE COORDINATOR_LOAD_IN_PROGRESS NOT_COORDINATOR NOT_CONTROLLER
        REPLICA_NOT_AVAILABLE PREFERRED_LEADER_NOT_AVAILABLE ELIGIBLE_LEADERS_NOT_AVAILABLE
        LISTENER_NOT_FOUND REBOOTSTRAP_REQUIRED _NOENT""",  # _NOENT: no partition has a leader, while brokers restart
    LeaderUnknown: """LEADER_NOT_AVAILABLE NOT_LEADER_FOR_PARTITION FENCED_LEADER_EPOCH UNKNOWN_LEADER_EPOCH
        OFFSET_NOT_AVAILABLE""",
    UnknownOutcome: "_TIMED_OUT _MSG_TIMED_OUT REQUEST_TIMED_OUT NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    Throttled: "THROTTLING_QUOTA_EXCEEDED",
    Overloaded: "KAFKA_STORAGE_ERROR NOT_ENOUGH_REPLICAS _QUEUE_FULL _ISR_INSUFF LOG_DIR_NOT_FOUND",
    Transient: """_RETRY _IN_PROGRESS _PREV_IN_PROGRESS _INTR _PARTIAL _OUTDATED _PARTITION_EOF _NO_OFFSET _NOOP
        _ASSIGN_PARTITIONS _REVOKE_PARTITIONS _BAD_MSG _UNDERFLOW _PURGE_QUEUE _PURGE_INFLIGHT
        REBALANCE_IN_PROGRESS UNSTABLE_OFFSET_COMMIT MEMBER_ID_REQUIRED CONCURRENT_TRANSACTIONS
        FETCH_SESSION_ID_NOT_FOUND INVALID_FETCH_SESSION_EPOCH
        OPERATION_NOT_ATTEMPTED TRANSACTION_ABORTABLE REASSIGNMENT_IN_PROGRESS NO_REASSIGNMENT_IN_PROGRESS
        ELECTION_NOT_NEEDED STALE_BROKER_EPOCH STALE_CTRL_EPOCH STALE_MEMBER_EPOCH UNKNOWN_SUBSCRIPTION_ID
        UNKNOWN_CONTROLLER_ID INVALID_MSG UNKNOWN""",
    ConfigurationError: """_INVALID_ARG _NOT_CONFIGURED _NOT_IMPLEMENTED _UNKNOWN_PROTOCOL _UNSUPPORTED_FEATURE
        INVALID_CONFIG INVALID_REQUEST INVALID_GROUP_ID INVALID_SESSION_TIMEOUT INVALID_PARTITIONS
        INVALID_REPLICATION_FACTOR INVALID_REPLICA_ASSIGNMENT INVALID_REQUIRED_ACKS INVALID_TRANSACTION_TIMEOUT
        INVALID_COMMIT_OFFSET_SIZE INVALID_REGULAR_EXPRESSION INCONSISTENT_GROUP_PROTOCOL UNSUPPORTED_VERSION
        UNSUPPORTED_ASSIGNOR UNSUPPORTED_COMPRESSION_TYPE UNSUPPORTED_ENDPOINT_TYPE UNSUPPORTED_FOR_MESSAGE_FORMAT
        OFFSET_METADATA_TOO_LARGE TOPIC_EXCEPTION MISMATCHED_ENDPOINT_TYPE GROUP_MAX_SIZE_REACHED POLICY_VIOLATION
        TELEMETRY_TOO_LARGE""",
    Refused: """TOPIC_ALREADY_EXISTS NON_EMPTY_GROUP GROUP_SUBSCRIBED_TO_TOPIC TOPIC_DELETION_DISABLED _CONFLICT
        _EXISTING_SUBSCRIPTION""",
    NotFound: """UNKNOWN_TOPIC_OR_PART _UNKNOWN_TOPIC _UNKNOWN_PARTITION _UNKNOWN_GROUP GROUP_ID_NOT_FOUND
        RESOURCE_NOT_FOUND""",
    AccessDenied: """_AUTHENTICATION _SSL SASL_AUTHENTICATION_FAILED UNSUPPORTED_SASL_MECHANISM ILLEGAL_SASL_STATE
        TOPIC_AUTHORIZATION_FAILED GROUP_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED
        TRANSACTIONAL_ID_AUTHORIZATION_FAILED SECURITY_DISABLED INVALID_PRINCIPAL_TYPE UNACCEPTABLE_CREDENTIAL
        PRINCIPAL_DESERIALIZATION_FAILURE DELEGATION_TOKEN_AUTHORIZATION_FAILED DELEGATION_TOKEN_AUTH_DISABLED
        DELEGATION_TOKEN_EXPIRED DELEGATION_TOKEN_NOT_FOUND DELEGATION_TOKEN_OWNER_MISMATCH
        DELEGATION_TOKEN_REQUEST_NOT_ALLOWED""",
    ContentRejected: """MSG_SIZE_TOO_LARGE INVALID_MSG_SIZE RECORD_LIST_TOO_LARGE INVALID_RECORD INVALID_TIMESTAMP
        _KEY_SERIALIZATION _VALUE_SERIALIZATION _KEY_DESERIALIZATION _VALUE_DESERIALIZATION""",
    IdentityChanged: """OFFSET_OUT_OF_RANGE _AUTO_OFFSET_RESET _LOG_TRUNCATION INCONSISTENT_TOPIC_ID
        UNKNOWN_TOPIC_ID""",
    Fenced: """UNKNOWN_MEMBER_ID ILLEGAL_GENERATION FENCED_INSTANCE_ID UNRELEASED_INSTANCE_ID FENCED_MEMBER_EPOCH
        PRODUCER_FENCED INVALID_PRODUCER_EPOCH INVALID_PRODUCER_ID_MAPPING TRANSACTION_COORDINATOR_FENCED _FENCED
        _ASSIGNMENT_LOST _MAX_POLL_EXCEEDED""",
    Terminal: """_FAIL _FATAL _DESTROY _STATE _FS _CRIT_SYS_RESOURCE _READ_ONLY _INCONSISTENT _GAPLESS_GUARANTEE
        _INVALID_TYPE _APPLICATION OUT_OF_ORDER_SEQUENCE_NUMBER DUPLICATE_SEQUENCE_NUMBER UNKNOWN_PRODUCER_ID
        INVALID_TXN_STATE _BAD_COMPRESSION""",
}

# A batch that is too large when unpacked fails in the same way for ever, and nothing of it can be read.
_UNPACK_STEP = (
    "the batch at this offset is damaged, or larger than receive.message.max.bytes when unpacked: raise that under "
    "kafka.client (it takes so much memory), or write its keys anew and have the topic compacted; restart the workers, "
    "then `crossfade resume` the version"
)

# Answers to requests these connectors never send: KRaft internals, share groups, Kafka Streams, features, SCRAM.
_UNUSED = """DUPLICATE_RESOURCE DUPLICATE_VOTER VOTER_NOT_FOUND INVALID_VOTER_KEY INCONSISTENT_VOTER_SET
    FEATURE_UPDATE_FAILED INVALID_UPDATE_VERSION INVALID_REGISTRATION FENCED_STATE_EPOCH INVALID_RECORD_STATE
    INVALID_SHARE_SESSION_EPOCH SHARE_SESSION_LIMIT_REACHED SHARE_SESSION_NOT_FOUND STREAMS_INVALID_TOPOLOGY
    STREAMS_INVALID_TOPOLOGY_EPOCH STREAMS_TOPOLOGY_FENCED _INVALID_DIFFERENT_RECORD NO_ERROR"""
NEVER_ASKED = frozenset(_UNUSED.split())

# getattr: an older or newer librdkafka may not know all of these names.
KIND_OF_CODE: dict[int, Kind] = {
    getattr(KafkaError, name): kind
    for kind, names in _NAMES.items()
    for name in names.split()
    if hasattr(KafkaError, name)
}


def kind_of(error: KafkaError) -> Kind:
    """The class an error is mapped to; codes unknown to the table are Transient only if librdkafka says retriable."""
    kind = KIND_OF_CODE.get(error.code())
    if kind is None:
        kind = Transient if error.retriable() else Terminal
    if error.fatal() and issubclass(kind, Transient):
        kind = Terminal  # a fatal client never recovers, whatever the code
    return kind


def mapped(error: KafkaError, doing: str, *, reading: bool = False) -> CrossfadeError:
    """The error to raise. `doing`: what was tried, with topic or group, as in "reading topic docs".

    `reading`: the call has no effect, so that no answer in time is Unreachable rather than UnknownOutcome.
    """
    kind = kind_of(error)
    if reading and kind is UnknownOutcome:
        kind = Unreachable
    # librdkafka quotes a refused setting's value, which may be a secret that stands in the wrong place.
    text = re.sub(r'Invalid value ".*" for', "Invalid value for", error.str(), flags=re.DOTALL)
    next_step = _UNPACK_STEP if error.code() == KafkaError._BAD_COMPRESSION else _NEXT_STEP[kind]
    return kind(f"{doing} failed: {text} ({error.name()})", next_step=next_step)


def unreachable(doing: str) -> Unreachable:
    return Unreachable(f"{doing}: no Kafka broker answers", next_step=_NEXT_STEP[Unreachable])


@contextmanager
def foreign(doing: str, *, reading: bool = False) -> Iterator[None]:
    """Everything confluent-kafka raises inside becomes one of `connectors.errors`."""
    try:
        yield
    except KafkaException as raised:
        error = raised.args[0] if raised.args else None
        if isinstance(error, KafkaError):
            failure = mapped(error, doing, reading=reading)
            # The cause of a refused setting quotes its value: not even a traceback may show it.
            raise failure from (None if error.code() == KafkaError._INVALID_ARG else raised)
        raise Terminal(f"{doing} failed: {raised}", next_step=_NEXT_STEP[Terminal]) from raised
    except BufferError as raised:
        raise Overloaded(f"{doing}: the local send queue is full", next_step=_NEXT_STEP[Overloaded]) from raised
    except RuntimeError as raised:  # "Consumer closed", "Handle has been terminated"
        raise Terminal(f"{doing} failed: {raised}", next_step="this client was closed; start a new one") from raised
