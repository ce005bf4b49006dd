"""The messages that replicas send each other, as MessagePack.

A message of an unknown type, and an unknown field of a known one, are ignored: a replica of the next version
may say more. Who it is from is known by the connection, which begins with :class:`Hello`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from rollbook.model import EntryRef  # noqa: TC001  # msgspec reads HttpBeat's annotations at run time
from rollbook.names import LeaseId  # noqa: TC001  # as above
from rollbook.problems import Problem, from_validation
from rollbook_registry.catalog.records import LeaseWrite, PodRecord
from rollbook_registry.cluster.reasons import Rank, Refused

PROTO: Final = 1
"""The protocol's version. One more or one less is understood, so that upgrades can roll."""

PODS: Final = -1
"""In the place of an origin: the closed and fenced pods, which are everybody's."""


class Position(NamedTuple):
    """How far a stream is known: the boot of its origin, and the number of the last write."""

    boot: str
    seq: int


class Sum(NamedTuple):
    """A stream's position, and the digest of its content there."""

    boot: str
    seq: int
    xor: int


class Message(
    msgspec.Struct,
    frozen=True,
    gc=False,
    kw_only=True,
    omit_defaults=True,
    tag_field="t",
    tag=lambda name: name.lower(),
):
    """What all messages have in common: their name, in field ``t``."""


class Hello(Message, frozen=True, kw_only=True):
    """Begins a connection, and is repeated until the peer's pings show that it came.

    Attributes:
        proto: :data:`PROTO` of the sender.
        ordinal: of the sender: its identity, whatever its address.
        boot: a random name of the sender's life.
    """

    proto: int
    ordinal: int
    boot: str


class Refusal(Message, frozen=True, kw_only=True):
    """Answers a :class:`Hello` that is not accepted, and says why."""

    reason: Refused
    detail: str = ""


class Ping(Message, frozen=True, kw_only=True):
    """Says "I am here", and where the sender stands: so a lost change is noticed within one ping.

    Attributes:
        boot: the sender's.
        to: the addressee's boot as the sender knows it; another one asks for a :class:`Hello`.
        rank: what the sender's book is worth.
        hears: peers that the sender hears.
        links: those among them that hear it too.
        streams: how far the sender has each origin's writes, its own among them.
        pods: digest over the closed and fenced pods that the sender knows.
    """

    boot: str
    to: str
    rank: Rank
    hears: list[int] = []
    links: list[int] = []
    streams: dict[int, Position] = {}
    pods: int = 0


class Change(Message, frozen=True, kw_only=True):
    """Writes of the sender's own leases, in order.

    Attributes:
        boot: the sender's.
        seq: the number of the last of them; they have consecutive ones.
    """

    boot: str
    seq: int
    writes: list[LeaseWrite]


class Marks(Message, frozen=True, kw_only=True):
    """Pods that are closed or fenced, as news."""

    pods: list[PodRecord]


class Digest(Message, frozen=True, kw_only=True):
    """What the sender has, in numbers.

    Attributes:
        streams: per origin.
        visible: over the book that users see.
        calm: nothing is on its way and no origin is lost, so that equal streams must show equal books.
    """

    boot: str
    streams: dict[int, Sum]
    visible: int
    calm: bool = False


class Pull(Message, frozen=True, kw_only=True):
    """Asks for an origin's writes after a position, or for its whole set, or (:data:`PODS`) for the pods.

    Attributes:
        n: names this pull; parts of the answer carry it.
        origin: whose.
        boot: of the position that is known; empty asks for everything.
        seq: of that position.
        index: which part of the answer is asked for; the next is asked for when one has arrived.
    """

    n: int
    origin: int
    boot: str = ""
    seq: int = 0
    index: int = 0


class Part(Message, frozen=True, kw_only=True):
    """A part of the answer to a :class:`Pull`.

    Attributes:
        boot: of the origin.
        seq: of a range, the number of the last write here; of a whole set, where the origin stood when its
            first part was made.
        whole: the answer is the origin's whole set; leases that no part names are gone.
        writes: of a range, consecutive writes; of a whole set, leases.
        split: the last lease here goes on in the next part.
        pods: of :data:`PODS`.
        last: there are no more parts.
    """

    n: int
    origin: int
    index: int = 0
    boot: str = ""
    seq: int = 0
    whole: bool = False
    writes: list[LeaseWrite] = []
    split: bool = False
    pods: list[PodRecord] = []
    last: bool = False


class Leave(Message, frozen=True, kw_only=True):
    """The sender is about to end: its leases are orphans from now on, without waiting for its silence."""

    boot: str


class HttpBeat(NamedTuple):
    """A plain HTTP client's beat of one instance."""

    lease: LeaseId
    ref: EntryRef


class Forward(Message, frozen=True, kw_only=True):
    """Beats of plain HTTP clients that reached a replica which does not own their leases.

    Attributes:
        beats: whose.
        relayed: it has been passed on once already, and is not again.
    """

    beats: list[HttpBeat]
    relayed: bool = False


AnyMessage = Hello | Refusal | Ping | Change | Marks | Digest | Pull | Part | Leave | Forward
"""What a peer may send."""


class _Named(msgspec.Struct):
    t: str


_TYPES: Final = frozenset({t.__struct_config__.tag for t in AnyMessage.__args__})
_decoder: Final[msgspec.msgpack.Decoder[AnyMessage]] = msgspec.msgpack.Decoder(AnyMessage)
_name_of: Final = msgspec.msgpack.Decoder(_Named)
encode: Final = msgspec.msgpack.Encoder().encode


def decode(data: bytes) -> AnyMessage | None:
    """Read a message; ``None`` for one of a type that is not known here.

    Raises:
        Problem: 400 ``bad_frame``: it is damaged, or a field is not what it must be.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        try:
            if _name_of.decode(data).t not in _TYPES:
                return None
        except msgspec.DecodeError:
            pass
        if isinstance(error, msgspec.DecodeError):
            problem = from_validation(error)
            raise Problem(
                "bad_frame", problem.detail, field=problem.field, accepted=problem.accepted
            ) from None
        raise Problem("bad_frame", "the message is nested too deeply", field="frame") from None
