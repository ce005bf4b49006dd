"""Verdicts: what a row of checks says about an instance.

Where nothing is known, the first check decides at once, whatever the thresholds: a verdict that is late is
worth less than one that may be corrected. From then on it takes ``failures`` in a row to count as not alive,
and ``successes`` in a row to count as alive again. A check that came to nothing through a fault of ours, or
of the name server, is evidence of neither and leaves everything as it was.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from rollbook.names import url_host

if TYPE_CHECKING:
    from rollbook.model import EntryRef


class Finding(StrEnum):
    """What one check found; counted and shown by this code."""

    PASSED = "passed"
    REFUSED = "refused"
    """Nobody listens there."""
    UNREACHABLE = "unreachable"
    """No way there, or the connection broke before it stood."""
    TIMED_OUT = "timed_out"
    BAD_STATUS = "bad_status"
    """An HTTP answer that isn't one from 200 to 399."""
    BAD_ANSWER = "bad_answer"
    """No HTTP, or the connection was closed without an answer."""
    UNRESOLVED = "unresolved"
    """The name server says that there is no such host."""
    FORBIDDEN = "forbidden"
    """The settings do not let a check reach there; nothing was sent."""
    NO_NAME_SERVER = "no_name_server"
    """The host's name could not be looked up in time; says nothing about the instance."""
    OWN_FAULT = "own_fault"
    """No sockets or ports left, or a mistake of ours; says nothing about the instance."""
    OWN_LAG = "own_lag"
    """This process was too slow to hear the answer in time; says nothing about the instance."""


INCONCLUSIVE: Final = frozenset({Finding.NO_NAME_SERVER, Finding.OWN_FAULT, Finding.OWN_LAG})
"""Findings that nobody is judged by."""


class Reason(StrEnum):
    """Why a verdict is what it is."""

    FIRST_SUCCESS = "first_success"
    FIRST_FAILURE = "first_failure"
    FAILED = "failed"
    """It was alive, and as many checks in a row as its threshold says have failed."""
    CONFIRMED = "confirmed"
    """The first check agrees with the verdict that the book had from before."""
    RECOVERED = "recovered"
    """It was not alive, and as many checks in a row as its threshold says have passed."""
    UNCHECKED = "unchecked"
    """Its check is ``none``: it counts as alive."""


class Answer(NamedTuple):
    """What one check found, with a text for people; the text is empty where all is well."""

    finding: Finding
    detail: str = ""


class Target(NamedTuple):
    """What a check asks: the question. Another target is another question, with a verdict of its own."""

    type: str
    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """Host and port as a URL or a ``Host`` header wants them."""
        return f"{url_host(self.host)}:{self.port}"


class Verdict(NamedTuple):
    """Whether an instance is alive, and why.

    Attributes:
        detail: of the check that decided, for people.
    """

    ref: EntryRef
    alive: bool
    reason: Reason
    finding: Finding
    detail: str = ""


class Judge:
    """The state machine of one instance.

    Args:
        known: a verdict from before, of this registry's last life or of another replica. The first check does
            not overrule it alone: a restart and one lost packet together must not take anybody out.

    Attributes:
        alive: the verdict; ``None`` until the first conclusive check, if none was known.
        against: how many checks in a row contradict the verdict.
    """

    __slots__ = ("_own", "against", "alive")

    def __init__(self, *, known: bool | None = None) -> None:
        self.alive = known
        self.against = 0
        self._own = False

    def take(self, finding: Finding, *, failures: int, successes: int) -> Reason | None:
        """Take what one check found; return why the verdict changed, if it did.

        Args:
            finding: of the check.
            failures: in a row, until it counts as not alive.
            successes: in a row, until it counts as alive again.
        """
        if finding in INCONCLUSIVE:
            return None
        passed = finding is Finding.PASSED
        if self.alive is None:
            self.alive, self._own = passed, True
            return Reason.FIRST_SUCCESS if passed else Reason.FIRST_FAILURE
        if passed is self.alive:
            self.against = 0
            own, self._own = self._own, True
            return None if own else Reason.CONFIRMED
        self.against += 1
        if self.against < (failures if self.alive else successes):
            return None
        self.alive, self.against, self._own = passed, 0, True
        return Reason.RECOVERED if passed else Reason.FAILED
