"""Whoever applies deltas holds exactly the list: real catalog, outlet, codecs and client sessions."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registrykit import ORDERS, Ledger, an_entry
from rollbook import frames
from rollbook.digest import digest, spell
from rollbook.events import ListChanged
from rollbook.names import LeaseId
from rollbook.session import Session
from rollbook_registry.catalog import ServiceChanged, ServiceForgotten
from rollbook_registry.push import Outlet, Subscriber

if TYPE_CHECKING:
    from rollbook.model import Instance


class Line(Subscriber):
    """A subscriber that is sent what there is for it, until it takes no more."""

    def __init__(self, codec, down):
        super().__init__(codec)
        self.down = down

    def send(self, data):
        assert not self.blocked
        self.down.append(data)


class Wire:
    """A subscriber's session, its client, and what is on its way between them."""

    def __init__(self, world, subprotocol):
        self.world = world
        self.codec = frames.Codec(subprotocol)
        self.client = Session(LeaseId("reader"))
        self.client.subscribe(ORDERS)
        self.mirror: dict[str, Instance] = {}
        self.snapshots = 0
        self.connect()

    def connect(self):
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.answers: list = []
        self.subscriber = Line(self.codec, self.down)
        self.client.connected(0.0)
        self.send()

    def reconnect(self):
        self.world.outlet.leave(self.subscriber)
        self.client.disconnected()
        self.connect()

    def send(self):
        self.up.extend(self.codec.encode(f) for f in self.client.take_frames())
        for event in self.client.take_events():
            assert isinstance(event, ListChanged)
            # Whoever follows the events, and never looks at the list, holds it too.
            for instance in event.change.put:
                self.mirror[instance.key] = instance
            for key in event.change.drop:
                del self.mirror[key]
        assert self.mirror == {i.key: i for i in self.client.views[ORDERS].instances}

    def registry_reads(self):
        outlet = self.world.outlet
        frame = self.codec.request(self.up.popleft())
        if isinstance(frame, frames.Ack):
            outlet.acknowledge(self.subscriber, ORDERS, frame.revision)
        else:
            outlet.subscribe(self.subscriber, ORDERS, revision=frame.revision, digest=frame.digest)
            current = outlet.current(ORDERS, self.subscriber)
            if current is not None:
                self.answer(self.codec.encode(current))

    def answer(self, data):
        # At once, or before anything else that is sent.
        (self.answers if self.subscriber.blocked else self.down).append(data)

    def registry_writes(self):
        self.world.outlet.flush(1)

    def block(self):
        self.subscriber.blocked = True

    def unblock(self):
        self.subscriber.blocked = False
        self.down.extend(self.answers)
        self.answers.clear()
        self.world.outlet.unblocked(self.subscriber)

    def client_reads(self):
        frame = self.codec.answer(self.down.popleft())
        self.snapshots += isinstance(frame, frames.Snapshot)
        self.client.received(frame, 0.0)
        view = self.client.views[ORDERS]
        if frame.revision == view.revision:
            assert view.digest == (frame.digest or view.digest)
        self.send()

    def settle(self):
        self.unblock()
        for _ in range(50):
            while self.up:
                self.registry_reads()
            self.world.outlet.flush(1000)
            while self.down:
                self.client_reads()
            if not self.up:
                return
        raise AssertionError("they never come to rest")


class World:
    def __init__(self, wires):
        self.ledger = Ledger()
        self.outlet = Outlet(
            boot="b1", service=self.ledger.catalog.service,
            services=self.ledger.catalog.services.within, wall=lambda: 0.0, clock=lambda: 0.0,
            pushed=lambda _: None, conflated=lambda _: None,
        )  # fmt: skip
        self.outlet.settle()
        self.wires = [Wire(self, s) for s in wires]

    def told(self):
        for event in self.ledger.take():
            if isinstance(event, ServiceChanged):
                self.outlet.changed(event)
            elif isinstance(event, ServiceForgotten):
                self.outlet.forgotten(event.service)


ports = st.integers(1, 4)
steps = st.one_of(
    st.tuples(st.just("put"), ports, st.sampled_from([1.0, 2.0])),
    st.tuples(st.just("drop"), ports),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 20.0, 70.0])),
    *[
        st.tuples(st.just(what), st.integers(0, 1))
        for what in ("read", "write", "get", "refresh", "all", "reconnect", "block", "unblock")
    ],
)


@settings(max_examples=200)
@given(st.lists(steps, min_size=20, max_size=60))
def test_whoever_applies_deltas_holds_exactly_the_list_however_slow(steps):
    world = World([frames.MSGPACK, frames.JSON])
    for what, argument, *more in steps:
        if what == "put":
            world.ledger.enter("a", an_entry(argument, weight=more[0]))
        elif what == "drop":
            world.ledger.deregister("a", an_entry(argument).ref)
        elif what == "pass":
            world.ledger.wait(argument)
        else:
            wire = world.wires[argument]
            if what == "read" and wire.up:
                wire.registry_reads()
            elif what == "write":
                wire.registry_writes()
            elif what == "get" and wire.down:
                wire.client_reads()
            elif what == "refresh":
                wire.client.refresh(ORDERS)
                wire.send()
            elif what == "all":
                wire.settle()
            elif what in {"reconnect", "block", "unblock"}:
                getattr(wire, what)()
        world.told()
    for wire in world.wires:
        wire.settle()
        service = world.ledger.catalog.service(ORDERS)
        listed = service.instances if service else {}
        view = wire.client.views[ORDERS]
        assert {i.key: i for i in view.instances} == listed
        assert view.digest == spell(digest(listed.values()))


@pytest.mark.parametrize("subprotocol", frames.SUBPROTOCOLS)
def test_who_keeps_up_never_needs_a_second_snapshot(subprotocol):
    world = World([subprotocol])
    (wire,) = world.wires
    wire.settle()
    for n in range(300):
        world.ledger.enter("a", an_entry(n % 7 + 1, weight=float(n)))
        world.told()
        wire.settle()
    assert wire.snapshots == 1
    assert len(wire.mirror) == 7


def test_a_list_that_came_back_to_what_was_held_is_not_taken_for_what_arrived_meanwhile():
    world = World([frames.MSGPACK])
    (wire,) = world.wires
    world.ledger.enter("a", an_entry(1))
    world.told()
    wire.settle()
    # A delta is on its way; the client, who has not seen it, compares its list with the registry's.
    world.ledger.register("a", an_entry(2))
    world.told()
    wire.registry_writes()
    wire.client.refresh(ORDERS)
    wire.send()
    # By the time that this is read, the list is again the one that the client asked with.
    world.ledger.deregister("a", an_entry(2).ref)
    world.told()
    wire.settle()
    assert [i.port for i in wire.client.views[ORDERS].instances] == [1]
