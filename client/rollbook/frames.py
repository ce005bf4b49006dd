"""Frames: the session protocol, one struct a message.

A session is one WebSocket (``GET /session`` on 8848 and 7848). The subprotocol chooses the spelling of the
frames: ``rollbook.v1.msgpack`` or ``rollbook.v1.json``, the same maps in both, told apart by ``type``.
WebSocket compression is off: frames are small, and compressing costs more than it saves.

The usual course::

    client                                  registry
    attach{lease, term} ------------------>
                       <------------------- attached{boot, term, resumed, settled, ...}
    register{id, entries} ---------------->
                       <------------------- done{id, term}
    beat{term} --------------------------->                 (no answer while all is well)
    subscribe{id, service, revision, digest}
                       <------------------- snapshot{...} or current{...}
                       <------------------- delta{...}
    ack{service, revision} --------------->
    release{id} -------------------------->                 (a clean goodbye)

What cannot be done is answered by ``refused``, which carries the problem and the request's ``id``. The
registry refuses fields that it does not know; clients ignore them, so that an older client understands a
newer registry.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from rollbook.model import Entry, EntryRef, Instance
from rollbook.names import DEFAULT_GROUP, DEFAULT_NAMESPACE, InstanceKey
from rollbook.problems import Problem, ProblemDetails, from_validation

MSGPACK: Final = "rollbook.v1.msgpack"
JSON: Final = "rollbook.v1.json"
SUBPROTOCOLS: Final = (MSGPACK, JSON)

Kind = Literal["session", "operator"]


class Frame(
    msgspec.Struct,
    frozen=True,
    gc=False,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag=str.lower,
):
    """What all frames have in common: ``type``."""


class ServiceFrame(Frame, frozen=True, kw_only=True):
    """A frame about one service."""

    service: str
    namespace: str = DEFAULT_NAMESPACE
    group: str = DEFAULT_GROUP


# --- client to registry -------------------------------------------------------------------------------


class Attach(Frame, frozen=True, kw_only=True):
    """Says whose session this is; must come before ``register`` and ``beat``, subscribers need none.

    Attributes:
        lease: the client's id, made at random for its process.
        term: the highest term that the client has seen; 0 at first.
        kind: an operator's entries merge differently, and outlive its silence for longer.
        epoch: of an operator: its Lease's transitions. Lower ones than the highest seen are refused.
    """

    lease: str
    term: int = 0
    kind: Kind = "session"
    epoch: int = 0


class Register(Frame, frozen=True, kw_only=True):
    """Enters instances, or changes what was said about them. All or nothing."""

    id: int
    entries: list[Entry]


class Deregister(Frame, frozen=True, kw_only=True):
    """Takes entries of this lease out of the book; unknown ones are no error."""

    id: int
    entries: list[EntryRef]


class Beat(Frame, frozen=True, kw_only=True):
    """Answers the roll for all entries of the lease, except those in ``down``.

    Attributes:
        term: as ``attached`` gave it; a beat of an older one is ignored and answered ``leaseended``.
        down: entries whose application does not work; their beats still count as the publisher's.
        entries: a full beat: registers what the registry does not know (asynchronously, with no answer).
    """

    term: int
    down: list[EntryRef] = []
    entries: list[Entry] = []


class Release(Frame, frozen=True, kw_only=True):
    """Ends the lease: everything that it holds leaves the book now."""

    id: int


class Subscribe(ServiceFrame, frozen=True, kw_only=True):
    """Asks for a service's list and all changes to it.

    Attributes:
        revision: of the list that the client still holds, if any.
        digest: of that list; an equal one is answered ``current``.
        named: whether the service itself is wanted. False compares a list that a pattern brought, without
            a wish to have it beyond that; if it is followed no more, ``vanished`` says so.
    """

    id: int
    revision: str = ""
    digest: str = ""
    named: bool = True


class Unsubscribe(ServiceFrame, frozen=True, kw_only=True):
    """Ends a subscription; an unknown one is no error. A pattern that matches goes on following."""


class Held(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """A list that a follower of a pattern holds already, as ``subscribe`` says it of one service."""

    service: str
    group: str = DEFAULT_GROUP
    revision: str = ""
    digest: str = ""


class PatternFrame(Frame, frozen=True, kw_only=True):
    """A frame about a pattern, see :mod:`rollbook.patterns`; the namespace is exact."""

    pattern: str
    namespace: str = DEFAULT_NAMESPACE
    group: str = DEFAULT_GROUP


class Follow(PatternFrame, frozen=True, kw_only=True):
    """Asks for the lists of all services that match, those that are there and those to come.

    Said again of the same pattern, it adds to ``held``: who holds very many lists offers them in several.

    Attributes:
        held: lists that the client still holds, and has by this pattern alone.
    """

    id: int
    held: list[Held] = []


class Unfollow(PatternFrame, frozen=True, kw_only=True):
    """Follows a pattern no more; what is subscribed by name, or matches another, stays."""


class Ack(ServiceFrame, frozen=True, kw_only=True):
    """Says that the client's list is at this revision."""

    revision: str


class Ping(Frame, frozen=True, kw_only=True):
    """Asks whether anybody is there."""

    n: int = 0


class Barrier(Frame, frozen=True, kw_only=True):
    """Asks to be told when every current subscriber has acknowledged all that changed so far.

    Attributes:
        services: the (namespace, group, service) triples that it is about.
        timeout: seconds after which ``done`` says ``complete: false``.
    """

    id: int
    services: list[tuple[str, str, str]]
    timeout: float = 10.0


class Close(Frame, frozen=True, kw_only=True):
    """Operator: these pods are terminating; their entries go, and their beats are refused."""

    id: int
    uids: list[str]


class GonePod(
    msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """A pod that is confirmed gone.

    Attributes:
        ips: its addresses, at which nothing answers any more; empty for host network, which others share.
    """

    uid: str
    ips: list[str] = []


class Fence(Frame, frozen=True, kw_only=True):
    """Operator: these pods are confirmed gone; whatever speaks in their name is refused from now on."""

    id: int
    pods: list[GonePod]


class Synced(Frame, frozen=True, kw_only=True):
    """Operator: a complete list of pods has been entered, so what older operators entered may go."""

    id: int


# --- registry to client -------------------------------------------------------------------------------


class Attached(Frame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Answers ``attach``.

    Attributes:
        boot: names this life of the registry; another one means that its book may be younger than yours.
        term: to be echoed in beats.
        resumed: whether the lease was still there with its entries. If not, register again.
        settled: as :class:`rollbook.model.ServiceList` has it.
        beat_interval: seconds between beats that the registry expects by default.
        unhealthy_after: seconds of silence after which entries turn unhealthy by default.
        remove_after: seconds of silence after which they are removed by default.
    """

    boot: str
    term: int
    resumed: bool
    settled: bool
    beat_interval: float
    unhealthy_after: float
    remove_after: float


class Done(Frame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The request ``id`` has been carried out."""

    id: int
    term: int = 0
    complete: bool = True


class Refused(Frame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The request ``id`` (0: a frame without one) was not carried out, and this is why."""

    id: int = 0
    problem: ProblemDetails


class LeaseEnded(Frame, frozen=True, kw_only=True, forbid_unknown_fields=False, tag="leaseended"):
    """A beat came for a lease that has ended, or in an older term: it was ignored. Attach and register."""

    lease: str
    term: int


class Snapshot(ServiceFrame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The whole list.

    Attributes:
        protect_threshold: the service's, as :class:`rollbook.model.ServiceList` has it.
    """

    revision: str
    digest: str
    settled: bool
    instances: list[Instance]
    protect_threshold: float | None = None


class Current(ServiceFrame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The list that the subscriber holds is the list.

    Attributes:
        digest: of that list. What was on its way when the subscriber asked may have made it another one
            since; it then asks again.
        protect_threshold: as ``snapshot`` has it.
    """

    revision: str
    settled: bool
    digest: str = ""
    protect_threshold: float | None = None


class Followed(Frame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Answers ``follow``; the lists come as they do for any subscription.

    Attributes:
        services: the (group, service) pairs that match at present, and are followed.
        problem: why others that match are not, if there are any.
    """

    id: int
    services: list[tuple[str, str]]
    problem: ProblemDetails | None = None


class Vanished(ServiceFrame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The service has been empty for so long that it is in the book no more; only a pattern followed it."""


class Omitted(ServiceFrame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A service that matches a pattern, and is new or was held, is not followed, and this is why."""

    problem: ProblemDetails


class Delta(ServiceFrame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What changed between two revisions. ``put`` comes before ``drop``: a roll-out never shows nothing.

    Attributes:
        base: the revision that it applies to.
        revision: the revision that it leads to.
        digest: of the list that results.
        put: instances that are new or different.
        drop: keys of those that have gone.
        at: Unix time in seconds at which the registry made the last change in it.
        protect_threshold: as it is now; it may be all that has changed.
    """

    base: str
    revision: str
    digest: str
    put: list[Instance] = []
    drop: list[InstanceKey] = []
    at: float = 0.0
    protect_threshold: float | None = None


class Settled(Frame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """From now on an instance's absence from a list means that it is not there."""


class Gone(Frame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """These pods were closed or fenced while the book is not settled.

    It may never have known them, so that no list loses them; but whoever still holds them from before must
    let go.
    """

    owners: list[str]


class Pong(Frame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """Answers ``ping``."""

    n: int = 0


class Goodbye(Frame, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The registry is about to close the session, and why; come back, here or elsewhere."""

    reason: str


Request = (
    Attach
    | Register
    | Deregister
    | Beat
    | Release
    | Subscribe
    | Unsubscribe
    | Follow
    | Unfollow
    | Ack
    | Ping
    | Barrier
    | Close
    | Fence
    | Synced
)
"""What a client may send."""

Answer = (
    Attached
    | Done
    | Refused
    | LeaseEnded
    | Snapshot
    | Current
    | Delta
    | Followed
    | Vanished
    | Omitted
    | Settled
    | Gone
    | Pong
    | Goodbye
)
"""What a registry may send."""


class Codec:
    """Spells frames for one subprotocol.

    Args:
        subprotocol: one of :data:`SUBPROTOCOLS`.
    """

    def __init__(self, subprotocol: str) -> None:
        if subprotocol not in SUBPROTOCOLS:
            raise ValueError(f"subprotocol is {subprotocol!r}; accepted: {', '.join(SUBPROTOCOLS)}")
        self.subprotocol = subprotocol
        self.binary = subprotocol == MSGPACK
        module = msgspec.msgpack if self.binary else msgspec.json
        self.encode = module.Encoder().encode
        self._requests: msgspec.msgpack.Decoder[Request] | msgspec.json.Decoder[Request]
        self._answers: msgspec.msgpack.Decoder[Answer] | msgspec.json.Decoder[Answer]
        if self.binary:
            self._requests = msgspec.msgpack.Decoder(Request)
            self._answers = msgspec.msgpack.Decoder(Answer)
        else:
            self._requests = msgspec.json.Decoder(Request)
            self._answers = msgspec.json.Decoder(Answer)

    def request(self, data: bytes | str) -> Request:
        """Read a client's frame.

        Raises:
            Problem: 400 ``bad_frame``, saying what is wrong with it.
        """
        try:
            return self._requests.decode(data)  # type: ignore[arg-type]
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError) as error:
            raise self._bad(error) from None

    def answer(self, data: bytes | str) -> Answer:
        """Read a registry's frame.

        Raises:
            Problem: 400 ``bad_frame``.
        """
        try:
            return self._answers.decode(data)  # type: ignore[arg-type]
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError) as error:
            raise self._bad(error) from None

    def _bad(self, error: Exception) -> Problem:
        if isinstance(error, msgspec.DecodeError):
            problem = from_validation(error)
            return Problem("bad_frame", problem.detail, field=problem.field, accepted=problem.accepted)
        # TypeError: a text frame where the subprotocol says binary ones.
        accepted = "binary frames of MessagePack" if self.binary else "JSON"
        return Problem("bad_frame", f"{error}; accepted: {accepted}", field="frame", accepted=accepted)
