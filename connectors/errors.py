"""The error tree. Every exception of a foreign library is mapped to one of these before it leaves a connector.

CrossfadeError
├── Transient                 the same call may succeed later; `retry_after_s` where the other side said when
│   ├── Unreachable           nothing answered, or the connection broke before the request was sent
│   ├── Throttled             the other side asked us to slow down (429, 503)
│   ├── Overloaded            it answers, but cannot take writes now (disk full, read-only, no quorum)
│   └── UnknownOutcome        the request was sent and no answer came: it may still take effect (rule 11)
└── Terminal                  the same call will fail again until somebody changes something
    ├── ConfigurationError    a file, a setting or an address is wrong
    ├── Refused               a rule forbids the step in this state
    ├── NotFound              the named topic, collection, version or space does not exist
    ├── AccessDenied          the other side knows us and says no (401, 403, ACL)
    ├── ContentRejected       the other side cannot take this content (400, 413, 422); never an outage
    ├── WrongModel            vectors of another size, not finite, or zero: nothing of them may be stored
    ├── IdentityChanged       the topic or the space is not the one this build began with (rule 1)
    └── Fenced                another owner has taken over; stop, do not retry

Whether to retry is the type, never a word in a message. Messages never hold secrets or document text.
"""


class CrossfadeError(Exception):
    """Base of all: what happened, and the next step for the person who reads it (may be empty)."""

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}\n  next: {self.next_step}" if self.next_step else self.message


class Transient(CrossfadeError):
    """May succeed later. `retry_after_s`: seconds the other side asked for, or None."""

    def __init__(self, message: str, *, next_step: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.retry_after_s = retry_after_s


class Unreachable(Transient):
    """Nothing answered; the request was certainly not carried out."""


class Throttled(Transient):
    """The other side asked us to slow down."""


class Overloaded(Transient):
    """The other side answers but cannot take writes now."""


class UnknownOutcome(Transient):
    """Sent, and no answer: the effect may still arrive. Retry identically and read back later."""


class Terminal(CrossfadeError):
    """Will fail again until somebody changes something."""


class ConfigurationError(Terminal):
    """A file, a setting or an address is wrong."""


class Refused(Terminal):
    """A rule forbids the step in this state."""


class NotFound(Terminal):
    """The named thing does not exist."""


class AccessDenied(Terminal):
    """The other side knows us and says no."""


class ContentRejected(Terminal):
    """The other side cannot take this content. Only the guilty document may be dead-lettered for it."""


class WrongModel(Terminal):
    """Vectors that cannot come from the model the space was built with."""


class IdentityChanged(Terminal):
    """The topic or the space is not the one this build began with."""


class Fenced(Terminal):
    """Another owner has taken over."""
