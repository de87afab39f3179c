"""Every failure of Weaviate, its client, gRPC and HTTP, as one of `connectors.errors`.

It must never carry the text of a document or a key out of a message, nor call a write undone that may have been done.
"""

from __future__ import annotations

import re
from typing import Final

import httpx
from grpc import StatusCode  # type: ignore[import-untyped]
from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from weaviate import exceptions as theirs

from connectors.errors import (
    AccessDenied,
    ConfigurationError,
    ContentRejected,
    CrossfadeError,
    NotFound,
    Overloaded,
    Terminal,
    Throttled,
    Transient,
    UnknownOutcome,
    Unreachable,
    WrongModel,
)

_KEY_STEP: Final = "check weaviate.api_key and the rights of its user"
_AWAY_STEP: Final = "check that Weaviate runs and that its addresses are right"
_DEFECT_STEP: Final = "this is a defect: please report it"

# A single object's failure, and what the server calls a plain error, come as text only: there is no code to go by.
# Each phrase was seen from (or read in) Weaviate 1.38; what no phrase matches counts as doubt, never as content.
_SAYS_OVERLOADED: Final = (
    "not allowed during this time",
    "not enough memory",
    "memory limit",
    "cannot reach enough replicas",
)
_SAYS_READ_ONLY: Final = ("read-only", "read only", "readonly")
_STORE_READ_ONLY: Final = "store is read-only"
_SAYS_WRONG_MODEL: Final = ("vector lengths don't match", "has a vector with length")
_SAYS_CONTENT: Final = (
    "invalid text property",
    "invalid date",
    "invalid integer",
    "invalid number",
    "invalid boolean",
    "no such prop",
)

_QUOTED: Final = re.compile(
    r"(?<!\w)['\"`].*['\"`]"
)  # from the first quotation mark to the last: a value may hold some


_NAMED: Final = re.compile(r'\b(?:shard|node)="[\w.:-]*"')  # as in shard="bwsSXyinFlVm": no document's words


class _ByStatus:
    """Marks client exceptions that carry an HTTP or gRPC status."""


class _NoAnswer:
    """Marks exceptions after which a write may or may not have happened."""


_Meaning = type[CrossfadeError] | type[_ByStatus] | type[_NoAnswer]

CLIENT: Final[dict[type[Exception], _Meaning]] = {
    theirs.UnexpectedStatusCodeError: _ByStatus,
    theirs.InsufficientPermissionsError: _ByStatus,
    theirs.ResponseCannotBeDecodedError: _NoAnswer,
    theirs.EmptyResponseError: _NoAnswer,
    theirs.WeaviateTimeoutError: _NoAnswer,
    theirs.WeaviateRetryError: _NoAnswer,
    theirs.WeaviateQueryError: _NoAnswer,
    theirs.WeaviateBatchError: _NoAnswer,
    theirs.WeaviateBatchSendError: _NoAnswer,
    theirs.WeaviateBatchStreamError: _NoAnswer,
    theirs.WeaviateBatchFailedToReestablishStreamError: _NoAnswer,
    theirs.WeaviateDeleteManyError: _NoAnswer,
    theirs.WeaviateInsertManyAllFailedError: _NoAnswer,
    theirs.WeaviateTenantGetError: _NoAnswer,
    theirs._BatchStreamShutdownError: _NoAnswer,
    theirs.WeaviateBaseError: _NoAnswer,
    theirs.WeaviateConnectionError: Unreachable,  # the client raises it for httpx.ConnectError only
    theirs.WeaviateGRPCUnavailableError: Unreachable,
    theirs.WeaviateStartUpError: Unreachable,
    theirs.AuthenticationFailedError: AccessDenied,
    theirs.MissingScopeError: AccessDenied,
    theirs.WeaviateUnsupportedFeatureError: ConfigurationError,
    theirs.WeaviateEmbeddedInvalidVersionError: ConfigurationError,
    theirs.WeaviateProtobufIncompatibility: ConfigurationError,
    theirs.WeaviateAgentsNotInstalledError: ConfigurationError,
    theirs.SchemaValidationError: ConfigurationError,
    theirs.WeaviateInsertInvalidPropertyError: ContentRejected,
    theirs.WeaviateAddInvalidPropertyError: ContentRejected,
    theirs.WeaviateBatchValidationError: ContentRejected,
    theirs.ObjectAlreadyExistsError: Terminal,
    theirs.WeaviateInvalidInputError: Terminal,
    theirs.InvalidDataModelError: Terminal,
    theirs.AdditionalPropertiesError: Terminal,
    theirs.WeaviateClosedClientError: Terminal,
    theirs.BackupFailedError: Terminal,
    theirs.BackupCanceledError: Terminal,
    theirs.ExportFailedError: Terminal,
    theirs.ExportCanceledError: Terminal,
}
"""Every exception class of the client, by name: a test fails when a new version of it adds one."""

FOREIGN: Final = (
    theirs.WeaviateBaseError,
    theirs.WeaviateProtobufIncompatibility,
    httpx.HTTPError,
    httpx.InvalidURL,
    AioRpcError,
)
"""What a call of the client or of gRPC may raise: catch these and raise `mapped(...) from` them."""

_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def mapped(error: BaseException, *, write: bool) -> CrossfadeError:
    """The error to raise for a foreign one. `write`: the request changes something, so a lost answer is doubt."""
    if isinstance(error, CrossfadeError):
        return error
    if isinstance(error, AioRpcError):
        return from_status(error.code(), error.details() or "", write=write)
    if isinstance(error, _NOT_SENT):
        return Unreachable(f"Weaviate does not answer ({type(error).__name__})", next_step=_AWAY_STEP)
    if isinstance(error, httpx.HTTPError):
        return no_answer(type(error).__name__, write=write)
    if isinstance(error, httpx.InvalidURL):
        return ConfigurationError("the Weaviate address is no URL", next_step="write weaviate.http as host:port")
    meaning = next((CLIENT[cls] for cls in type(error).__mro__ if cls in CLIENT), _NoAnswer)
    if issubclass(meaning, _ByStatus) and isinstance(error, theirs.UnexpectedStatusCodeError):
        return from_http(error.status_code, error.error, write=write)
    if issubclass(meaning, CrossfadeError):
        return meaning(f"Weaviate: {quiet(str(error))}", next_step=_step(meaning))
    return no_answer(type(error).__name__, write=write)


def no_answer(why: str, *, write: bool) -> CrossfadeError:
    """The connection broke or the time was up after the request was sent (rule 11 for a write)."""
    if write:
        return UnknownOutcome(
            f"Weaviate gave no answer to a write ({quiet(why)})",
            next_step="it is read back and mended by itself; check Weaviate's health",
        )
    return Unreachable(f"Weaviate gave no answer to a read ({quiet(why)})", next_step=_AWAY_STEP)


def from_status(code: StatusCode, details: str, *, write: bool) -> CrossfadeError:
    """A failed gRPC call that had been sent."""
    match code:
        case StatusCode.UNAUTHENTICATED | StatusCode.PERMISSION_DENIED:
            return AccessDenied("Weaviate refuses access", next_step=_KEY_STEP)
        case StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(
                f"Weaviate is out of resources: {quiet(details)}", next_step="check its limits and its memory"
            )
        case StatusCode.FAILED_PRECONDITION if isinstance(said := from_text(details), Overloaded):
            return said  # a shard that is read-only: nothing is wrong with the request
        case (
            StatusCode.INVALID_ARGUMENT
            | StatusCode.OUT_OF_RANGE
            | StatusCode.FAILED_PRECONDITION
            | StatusCode.NOT_FOUND
            | StatusCode.ALREADY_EXISTS
        ):
            return Terminal(f"Weaviate refuses the request: {quiet(details)}", next_step=_DEFECT_STEP)
        case StatusCode.UNIMPLEMENTED:
            return ConfigurationError(
                "the gRPC address is not that of a Weaviate server of this kind", next_step="check weaviate.grpc"
            )
        case StatusCode.UNKNOWN | StatusCode.INTERNAL | StatusCode.UNAVAILABLE:
            said = from_text(details)
            if isinstance(said, Transient):
                return said
            if said is not None:  # of one object this would be the object's fault; of a whole request it is ours
                return Terminal(f"Weaviate refuses the request: {quiet(details)}", next_step=_DEFECT_STEP)
            if write or code is StatusCode.UNAVAILABLE:
                return no_answer(f"{code.name}: {details}", write=write)
            return Overloaded(f"Weaviate could not answer: {quiet(details)}", next_step="check its log")
        case _:
            return no_answer(code.name, write=write)


def from_http(status: int, body: object, *, write: bool) -> CrossfadeError:
    """An answer over HTTP that is not the one wanted. Only schema and aliases go that way, never a document."""
    said = quiet(str(body), keep_quotes=True)
    match status:
        case 401 | 403:
            return AccessDenied(f"Weaviate refuses access ({status})", next_step=_KEY_STEP)
        case 404:
            return NotFound(
                f"Weaviate does not have it: {said}", next_step="`crossfade status` lists the spaces there are"
            )
        case 429:
            return Throttled("Weaviate asks us to slow down (429)", next_step="it is tried again by itself")
        case 400 | 413 | 422:
            return ConfigurationError(f"Weaviate refuses the request ({status}): {said}", next_step=_DEFECT_STEP)
        case 503 | 507:
            return Overloaded(
                f"Weaviate cannot take it now ({status}): {said}", next_step="check its disk and its health"
            )
        case 408 | 500 | 502 | 504:
            return no_answer(f"{status}: {said}", write=write)
        case _:
            return Terminal(f"Weaviate answers {status}: {said}", next_step=_AWAY_STEP)


def from_text(said: str) -> CrossfadeError | None:
    """What a plain sentence of the server means, or None where no known phrase is in it."""
    text = _QUOTED.sub("", said).lower()  # a document's own words must not decide
    of_shards = _QUOTED.sub("", _NAMED.sub("", said)).lower()  # between the names of two shards nothing is quoted
    if _STORE_READ_ONLY in of_shards or any(phrase in text for phrase in _SAYS_READ_ONLY):
        return Overloaded(
            f"Weaviate is read-only: {quiet(said)}",
            next_step="it does so when its disk is 90% full (DISK_USE_READONLY_PERCENTAGE) or its memory runs out: "
            "free some; if writes are still refused then, set its shards READY",
        )
    if any(phrase in text for phrase in _SAYS_OVERLOADED):
        return Overloaded(
            f"Weaviate cannot take writes now: {quiet(said)}",
            next_step="free disk or memory, or bring its nodes back; then set the shards READY",
        )
    if any(phrase in text for phrase in _SAYS_WRONG_MODEL):
        return WrongModel(
            f"Weaviate refuses the vector: {quiet(said)}", next_step="check which model the endpoint serves"
        )
    if any(phrase in text for phrase in _SAYS_CONTENT):
        return ContentRejected(f"Weaviate refuses the object: {quiet(said)}", next_step="correct the document")
    return None


def quiet(said: str, *, keep_quotes: bool = False) -> str:
    """A server's words without what it quotes (which may be a document's), in at most 200 characters."""
    said = " ".join(said.split())
    said = said if keep_quotes else _QUOTED.sub("...", said)
    return said if len(said) <= 200 else said[:199] + "…"


def _step(meaning: type[CrossfadeError]) -> str:
    if issubclass(meaning, Unreachable):
        return _AWAY_STEP
    return _KEY_STEP if issubclass(meaning, AccessDenied) else _DEFECT_STEP
