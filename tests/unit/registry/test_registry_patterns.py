"""Whoever follows a pattern holds exactly the lists of the services that match, whatever happens in between.

Real catalog, outlet, codecs and client sessions; what hypothesis makes up is who registers what where, how
slow everybody is, and when connections and registries end.
"""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registrykit import Ledger, Patient, an_entry, key_of
from rollbook import frames, session
from rollbook.digest import digest, spell
from rollbook.events import Found, ListChanged, Lost, NotListed, PatternAnswered
from rollbook.names import LeaseId, ServiceKey
from rollbook.patterns import Pattern
from rollbook.problems import Problem
from rollbook.session import Session
from rollbook_registry.catalog import Service, ServiceChanged, ServiceForgotten
from rollbook_registry.push import Offer, Outlet

A = Pattern(service="a*")
AB = Pattern(service="*b*")
OTHERS = Pattern(group="*", service="a")
PATTERNS = (A, AB, OTHERS)
SERVICES = [
    ServiceKey("public", "DEFAULT_GROUP", "a"),
    ServiceKey("public", "DEFAULT_GROUP", "ab"),
    ServiceKey("public", "DEFAULT_GROUP", "c"),
    ServiceKey("public", "other", "a"),
    ServiceKey("prod", "DEFAULT_GROUP", "a"),
]


class World:
    """A registry, which may be followed by its next life."""

    def __init__(self, **limits):
        self.limits = limits
        self.boots = 0
        self.start()

    def start(self):
        self.boots += 1
        self.ledger = Ledger(empty_kept=20.0)
        self.outlet = Outlet(
            boot=f"b{self.boots}", service=self.ledger.catalog.service,
            services=self.ledger.catalog.services.within, wall=lambda: 0.0, clock=lambda: 0.0,
            pushed=lambda _: None, conflated=lambda _: None,
        )  # fmt: skip

    def told(self):
        for event in self.ledger.take():
            if isinstance(event, ServiceChanged):
                self.outlet.changed(event)
            elif isinstance(event, ServiceForgotten):
                self.outlet.forgotten(event.service)

    def enter(self, key, port, *, lease="x", **fields):
        self.ledger.enter(
            lease, an_entry(port, service=key.name, group=key.group, namespace=key.namespace, **fields)
        )
        self.told()

    def drop(self, key, port, lease="x"):
        entry = an_entry(port, service=key.name, group=key.group, namespace=key.namespace)
        self.ledger.deregister(lease, entry.ref)
        self.told()

    def wait(self, seconds):
        self.ledger.wait(seconds)
        self.told()

    def lists(self, wanted):
        return {
            s.key: dict(s.instances)
            for s in self.ledger.catalog.services
            if s.number and any(p.matches(s.key) for p in wanted)
        }


class Wire:
    """A client's session, what the registry has of it, and what is on its way between them."""

    def __init__(self, world, *patterns, subprotocol=frames.MSGPACK):
        self.world = world
        self.codec = frames.Codec(subprotocol)
        self.client = Session(LeaseId("reader"))
        self.events = []
        self.frames = []
        self.mirror = {}
        self.found = set()
        for pattern in patterns:
            self.client.follow(pattern)
        self.connect()

    def connect(self):
        self.up, self.down, self.answers = deque(), deque(), []
        self.subscriber = Patient(self.world.outlet, self.codec, **self.world.limits)
        self.client.connected(0.0)
        self.send()

    def cut(self):
        self.world.outlet.leave(self.subscriber)
        self.client.disconnected()

    def send(self):
        self.up.extend(self.codec.encode(f) for f in self.client.take_frames())
        for event in self.client.take_events():
            self.events.append(event)
            # Whoever follows the events, and never looks at the lists, holds them too.
            match event:
                case Found(service):
                    assert service not in self.found
                    self.found.add(service)
                case Lost(service):
                    self.found.remove(service)
                    assert not self.mirror.pop(service, {})
                case ListChanged(service, change):
                    held = self.mirror.setdefault(service, {})
                    held.update((i.key, i) for i in change.put)
                    for key in change.drop:
                        del held[key]

    def registry_reads(self):
        outlet = self.world.outlet
        frame = self.codec.request(self.up.popleft())
        held = []
        try:
            match frame:
                case frames.Ack():
                    key = ServiceKey(frame.namespace, frame.group, frame.service)
                    outlet.acknowledge(self.subscriber, key, frame.revision)
                case frames.Subscribe():
                    held = [ServiceKey(frame.namespace, frame.group, frame.service)]
                    take_up = outlet.subscribe if frame.named else outlet.compare
                    take_up(self.subscriber, held[0], revision=frame.revision, digest=frame.digest)
                case frames.Unsubscribe():
                    outlet.unsubscribe(
                        self.subscriber, ServiceKey(frame.namespace, frame.group, frame.service)
                    )
                case frames.Follow():
                    held = {
                        ServiceKey(frame.namespace, h.group, h.service): Offer(h.revision, h.digest)
                        for h in frame.held
                    }
                    pattern = Pattern(frame.namespace, frame.group, frame.pattern)
                    found, problem = outlet.follow(self.subscriber, pattern, held)
                    self.answers.append(
                        frames.Followed(
                            id=frame.id, services=[(k.group, k.name) for k in found],
                            problem=problem.details() if problem else None,
                        )
                    )  # fmt: skip
                case frames.Unfollow():
                    outlet.unfollow(self.subscriber, Pattern(frame.namespace, frame.group, frame.pattern))
        except Problem as problem:
            self.answers.append(frames.Refused(id=frame.id, problem=problem.details()))
        currents = (outlet.current(key, self.subscriber) for key in held)
        self.answers.extend(c for c in currents if c is not None)

    def registry_writes(self):
        self.down.extend(self.codec.encode(f) for f in self.answers)
        self.answers.clear()
        self.down.extend(self.subscriber.take())

    def client_reads(self):
        frame = self.codec.answer(self.down.popleft())
        self.frames.append(frame)
        self.client.received(frame, 0.0)
        self.send()

    def settle(self):
        for _ in range(100):
            while self.up:
                self.registry_reads()
            self.registry_writes()
            while self.down:
                self.client_reads()
            if not self.up:
                return self
        raise AssertionError("they never come to rest")

    @property
    def lists(self):
        return {s: {i.key: i for i in v.instances} for s, v in self.client.views.items()}

    def got(self, kind):
        taken = [f for f in self.frames if isinstance(f, kind)]
        self.frames = []
        return taken

    def check(self):
        """What the client holds is what matches; the registry's bookkeeping is what it should be."""
        wanted = self.client.patterns
        named = self.client._named
        expected = self.world.lists(wanted)
        assert self.lists == {**{key: {} for key in named}, **expected, **self.named_lists(named)}
        for service, view in self.client.views.items():
            assert view.digest == spell(digest(self.lists[service].values()))
            assert self.mirror.get(service, {}) == self.lists[service]
        matched = {s for s in self.client.views if any(p.matches(s) for p in wanted)}
        assert matched <= self.found
        assert set(self.subscriber.subscriptions) == set(self.client.views)
        assert {k for k, s in self.subscriber.subscriptions.items() if s.named} == named
        assert set(self.subscriber.patterns) == set(wanted)
        assert self.subscriber not in self.world.outlet._news

    def named_lists(self, named):
        found = {key: self.world.ledger.catalog.service(key) for key in named}
        return {key: dict(service.instances) for key, service in found.items() if service}


services = st.sampled_from(SERVICES)
patterns = st.sampled_from(PATTERNS)
steps = st.one_of(
    st.tuples(st.just("put"), services, st.integers(1, 2), st.sampled_from([1.0, 2.0])),
    st.tuples(st.just("drop"), services, st.integers(1, 2)),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 40.0])),
    st.tuples(st.just("follow"), patterns),
    st.tuples(st.just("unfollow"), patterns),
    st.tuples(st.just("subscribe"), services),
    st.tuples(st.just("unsubscribe"), services),
    st.tuples(st.just("refresh"), services),
    *[
        st.tuples(st.just(what))
        for what in ("read", "write", "get", "get", "all", "reconnect", "restart", "settled")
    ],
)


@settings(max_examples=300)
@given(st.sets(patterns), st.lists(steps, min_size=10, max_size=60))
def test_whoever_follows_patterns_holds_exactly_the_matching_lists(first, steps):  # noqa: PLR0912  # one arm a step
    world = World()
    wire = Wire(world, *first)
    for what, *arguments in steps:
        match what:
            case "put":
                key, port, weight = arguments
                world.enter(key, port, weight=weight)
            case "drop":
                world.drop(*arguments)
            case "pass":
                world.wait(*arguments)
            case "follow" | "unfollow" | "subscribe" | "unsubscribe" | "refresh":
                # What was followed before is no news, and neither is what a caller does not want any more.
                if what == "follow":
                    wire.found |= {s for s in wire.client.views if arguments[0].matches(s)}
                before = set(wire.client.views)
                getattr(wire.client, what)(*arguments)
                for gone in before - set(wire.client.views):
                    wire.mirror.pop(gone, None)
                    wire.found.discard(gone)
                wire.found -= {s for s in wire.found if not any(p.matches(s) for p in wire.client.patterns)}
                wire.send()
            case "read" if wire.up:
                wire.registry_reads()
            case "write":
                wire.registry_writes()
            case "get" if wire.down:
                wire.client_reads()
            case "all":
                wire.settle()
            case "reconnect":
                wire.cut()
                wire.connect()
            case "restart":
                wire.cut()
                world.start()
                wire.connect()
            case "settled" if not world.outlet.settled:
                world.outlet.settle()
                wire.answers.append(frames.Settled())
    if not world.outlet.settled:
        world.outlet.settle()
        wire.answers.append(frames.Settled())
    wire.settle()
    wire.check()


@pytest.fixture
def world():
    world = World()
    world.outlet.settle()
    return world


def test_services_that_are_there_and_those_to_come_are_followed(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A).settle()
    (followed,) = [f for f in wire.frames if isinstance(f, frames.Followed)]
    assert followed.services == [("DEFAULT_GROUP", "a")]
    assert [type(e) for e in wire.events] == [Found, PatternAnswered, ListChanged]
    world.enter(SERVICES[1], 1)
    world.enter(SERVICES[2], 1)
    world.enter(SERVICES[3], 1)
    world.enter(SERVICES[4], 1)
    wire.settle().check()
    assert set(wire.client.views) == {SERVICES[0], SERVICES[1]}


def test_a_change_of_a_followed_service_is_one_delta_as_for_any_subscriber(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A, OTHERS).settle()
    wire.got(object)
    world.enter(SERVICES[0], 2)
    wire.settle()
    (delta,) = wire.frames
    assert isinstance(delta, frames.Delta)
    assert [i.port for i in delta.put] == [2]


def test_an_empty_service_stays_until_the_registry_lets_go_of_it_and_may_come_back(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A).settle()
    world.drop(SERVICES[0], 1)
    wire.settle().check()
    assert wire.lists == {SERVICES[0]: {}}
    assert not wire.got(frames.Vanished)
    world.wait(21.0)
    wire.settle().check()
    assert wire.got(frames.Vanished)
    assert wire.client.views == {}
    assert wire.events[-1] == Lost(SERVICES[0])
    assert world.outlet.subscriptions == 0
    world.enter(SERVICES[0], 2)
    wire.settle().check()
    assert [i.port for i in wire.client.views[SERVICES[0]].instances] == [2]


def test_what_came_back_before_its_farewell_was_written_needs_none(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A).settle()
    world.drop(SERVICES[0], 1)
    wire.settle()
    world.wait(21.0)
    world.enter(SERVICES[0], 2)
    wire.got(object)
    wire.settle().check()
    assert not wire.got(frames.Vanished)
    assert [i.port for i in wire.client.views[SERVICES[0]].instances] == [2]


def test_a_farewell_waits_until_the_emptiness_has_been_acknowledged(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A).settle()
    world.drop(SERVICES[0], 1)
    lifted = []
    world.outlet.barrier([SERVICES[0]], lambda: lifted.append(True))
    wire.registry_writes()
    world.wait(21.0)
    wire.registry_writes()
    assert not lifted
    assert SERVICES[0] in wire.subscriber.subscriptions
    wire.settle().check()
    assert lifted
    assert wire.client.views == {}


def test_who_comes_back_offers_what_it_holds_and_gets_no_list_again(world):
    world.enter(SERVICES[0], 1)
    world.enter(SERVICES[1], 1)
    wire = Wire(world, A).settle()
    wire.cut()
    world.enter(SERVICES[1], 2)
    wire.connect()
    wire.got(object)
    wire.settle().check()
    kinds = sorted(type(f).__name__ for f in wire.frames)
    assert kinds == ["Current", "Delta", "Followed"]


def test_who_holds_very_many_offers_them_in_several_frames(world, monkeypatch):
    monkeypatch.setattr(session, "MAX_HELD_PER_FRAME", 2)
    for n in range(5):
        world.enter(key_of(f"a{n}"), 1)
    wire = Wire(world, A).settle()
    wire.cut()
    world.enter(key_of("a2"), 2)
    wire.connect()
    follows = [wire.codec.request(data) for data in wire.up]
    assert [len(f.held) for f in follows] == [2, 2, 1]
    wire.got(object)
    wire.events.clear()
    while wire.up:
        wire.registry_reads()
    wire.settle().check()
    kinds = sorted(type(f).__name__ for f in wire.frames)
    assert kinds == ["Current"] * 4 + ["Delta"] + ["Followed"] * 3
    # It is one answer to who asked.
    assert len([e for e in wire.events if isinstance(e, PatternAnswered)]) == 1


def test_what_vanished_while_nobody_was_connected_is_told(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A).settle()
    wire.cut()
    world.drop(SERVICES[0], 1)
    world.wait(21.0)
    wire.connect()
    wire.settle().check()
    assert wire.client.views == {}
    assert [type(e) for e in wire.events[-2:]] == [ListChanged, Lost] or isinstance(wire.events[-1], Lost)


def test_a_registry_that_forgot_everything_empties_nobody_before_it_is_settled(world):
    world.enter(SERVICES[0], 1)
    world.enter(SERVICES[1], 1)
    wire = Wire(world, A).settle()
    wire.cut()
    world.start()
    wire.connect()
    wire.settle()
    assert [len(v) for v in wire.lists.values()] == [1, 1]
    world.enter(SERVICES[0], 1)
    wire.settle()
    world.outlet.settle()
    wire.answers.append(frames.Settled())
    wire.settle().check()
    assert set(wire.lists) == {SERVICES[0]}


def test_what_is_subscribed_by_name_outlives_pattern_and_service(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A).settle()
    wire.client.subscribe(SERVICES[0])
    wire.send()
    wire.settle()
    wire.client.unfollow(A)
    wire.send()
    world.enter(SERVICES[1], 1)
    world.drop(SERVICES[0], 1)
    world.wait(21.0)
    wire.settle().check()
    assert set(wire.client.views) == {SERVICES[0]}
    assert world.outlet.patterns == 0


def test_two_patterns_that_mean_one_service_follow_it_once(world):
    world.enter(SERVICES[1], 1)
    wire = Wire(world, A, AB).settle()
    assert len(wire.got(frames.Snapshot)) == 1
    assert world.outlet.subscriptions == 1
    wire.client.unfollow(A)
    wire.send()
    world.enter(SERVICES[1], 2)
    wire.settle().check()
    assert len(wire.client.views[SERVICES[1]].instances) == 2
    wire.client.unfollow(AB)
    wire.send()
    wire.settle().check()
    assert (world.outlet.subscriptions, world.outlet.patterns) == (0, 0)


def test_who_leaves_leaves_nothing_behind(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, *PATTERNS).settle()
    wire.client.subscribe(SERVICES[2])
    wire.send()
    wire.settle()
    wire.cut()
    outlet = world.outlet
    assert (outlet.subscriptions, outlet.patterns) == (0, 0)
    assert outlet._patterns == outlet._topics == outlet._changed == outlet._news == {}


def test_a_pattern_too_many_is_refused_and_named():
    world = World(most_patterns=2)
    wire = Wire(world, *PATTERNS).settle()
    (refused,) = wire.got(frames.Refused)
    assert refused.problem.code == "limit_reached"
    assert "at most 2 patterns (--max-patterns)" in refused.problem.detail
    answered = {e.pattern: e.problem for e in wire.events if isinstance(e, PatternAnswered)}
    assert [p for p, problem in answered.items() if problem] == [OTHERS]
    assert len(wire.subscriber.patterns) == 2


def test_services_beyond_the_limit_are_told_and_what_was_followed_goes_on():
    world = World(most=2)
    world.outlet.settle()
    for service in ("a3", "a1", "a2"):
        world.enter(key_of(service), 1)
    wire = Wire(world, A).settle()
    assert set(wire.lists) == {key_of("a1"), key_of("a2")}
    (answered,) = [e for e in wire.events if isinstance(e, PatternAnswered)]
    assert "matches 1 more services" in answered.problem.detail
    assert "at most 2 subscriptions (--max-subscriptions)" in answered.problem.detail
    world.enter(key_of("a4"), 1)
    wire.settle()
    (omitted,) = [e for e in wire.events if isinstance(e, NotListed)]
    assert (omitted.service, omitted.problem.code) == (key_of("a4"), "limit_reached")
    # Coming back, it gets what it had, not what is first by name now.
    world.enter(key_of("a0"), 1)
    wire.cut()
    wire.connect()
    wire.settle()
    assert set(wire.lists) == {key_of("a1"), key_of("a2")}
    with pytest.raises(Problem, match="--max-subscriptions"):
        world.outlet.subscribe(wire.subscriber, key_of("c"), revision="", digest="")


def test_room_that_becomes_free_is_filled_with_what_had_none():
    world = World(most=3)
    world.outlet.settle()
    for service in ("a1", "a2", "a3", "c"):
        world.enter(key_of(service), 1)
    wire = Wire(world)
    wire.client.subscribe(key_of("c"))
    wire.client.follow(A)
    wire.send()
    wire.settle()
    assert set(wire.lists) == {key_of("a1"), key_of("a2"), key_of("c")}
    assert wire.subscriber.crowded
    # By a name that is wanted no more,
    wire.client.unsubscribe(key_of("c"))
    wire.send()
    wire.settle()
    assert set(wire.lists) == {key_of("a1"), key_of("a2"), key_of("a3")}
    assert not wire.subscriber.crowded
    # by a service that vanishes,
    world.enter(key_of("a0"), 1)
    wire.settle()
    assert key_of("a0") not in wire.lists
    world.drop(key_of("a2"), 1)
    wire.settle()
    world.wait(21.0)
    wire.settle()
    assert set(wire.lists) == {key_of("a0"), key_of("a1"), key_of("a3")}
    # and by a pattern.
    world.enter(key_of("b1"), 1)
    wire.client.follow(Pattern("public", "DEFAULT_GROUP", "b*"))
    wire.send()
    wire.settle()
    assert key_of("b1") not in wire.lists
    wire.client.unfollow(A)
    wire.send()
    wire.settle()
    assert set(wire.lists) == {key_of("b1")}


def test_a_list_that_was_on_its_way_when_another_pattern_came_to_mean_it_is_let_go(world):
    world.enter(SERVICES[0], 1)
    everywhere = Pattern("public", "*", "a")
    wire = Wire(world, everywhere).settle()
    # The registry's next life knows nothing of the service, and says so to who follows it.
    wire.cut()
    world.start()
    wire.connect()
    wire.registry_reads()
    wire.registry_writes()
    world.outlet.settle()
    wire.answers.append(frames.Settled())
    # Before the client hears of it, it follows another pattern instead.
    wire.client.unfollow(everywhere)
    wire.client.follow(A)
    wire.mirror.clear()
    wire.found.clear()
    wire.send()
    wire.settle()
    wire.check()
    assert wire.lists == {}


def test_who_makes_up_names_without_reading_is_told_of_so_many_at_most():
    world = World(most=3)
    wire = Wire(world, A).settle()
    for n in range(3):
        world.outlet.compare(wire.subscriber, key_of(f"made-up-{n}"), revision="", digest="")
    with pytest.raises(Problem, match="--max-subscriptions"):
        world.outlet.compare(wire.subscriber, key_of("made-up-3"), revision="", digest="")


def test_what_was_held_and_fits_no_more_is_let_go_and_told():
    world = World()
    world.outlet.settle()
    for n in range(3):
        world.enter(key_of(f"a{n}"), 1)
    wire = Wire(world, A).settle()
    wire.cut()
    world.limits["most"] = 2
    wire.connect()
    wire.settle()
    assert len(wire.client.views) == 2
    (lost,) = [e.service for e in wire.events if isinstance(e, Lost)]
    (omitted,) = [e.service for e in wire.events if isinstance(e, NotListed)]
    assert lost == omitted
    assert lost not in wire.client.views


def test_a_new_service_costs_a_look_at_the_patterns_of_its_namespace_and_a_known_one_none(world):
    class Watched(Pattern):
        looks = 0

        def matches(self, key):
            Watched.looks += 1
            return super().matches(key)

    subscriber = Patient(world.outlet, frames.Codec(frames.MSGPACK))
    for n in range(5):
        world.outlet.follow(subscriber, Watched("public", "DEFAULT_GROUP", f"x{n}*"), {})
        world.outlet.follow(subscriber, Watched("prod", "DEFAULT_GROUP", f"x{n}*"), {})
    Watched.looks = 0
    world.enter(key_of("a"), 1)
    assert Watched.looks == 5
    for n in range(20):
        world.enter(key_of("a"), 1, weight=float(n))
    world.drop(key_of("a"), 1)
    assert Watched.looks == 5


def test_settings_alone_make_no_service_to_follow(world):
    world.ledger.catalog.services.add(Service(SERVICES[0], number=0, now=0.0))
    wire = Wire(world, A).settle()
    assert wire.client.views == {}
    world.enter(SERVICES[0], 1)
    wire.settle().check()
    assert set(wire.client.views) == {SERVICES[0]}


def test_what_is_no_longer_wanted_by_name_goes_on_being_followed_for_a_pattern(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A)
    wire.client.subscribe(SERVICES[0])
    wire.send()
    wire.settle()
    wire.client.unsubscribe(SERVICES[0])
    wire.send()
    world.enter(SERVICES[0], 2)
    wire.settle().check()
    assert len(wire.client.views[SERVICES[0]].instances) == 2
    world.drop(SERVICES[0], 1)
    world.drop(SERVICES[0], 2)
    wire.settle()
    world.wait(21.0)
    wire.settle().check()
    assert wire.client.views == {}


def test_what_vanished_while_it_was_wanted_by_name_is_let_go_with_the_name(world):
    wire = Wire(world, A)
    wire.client.subscribe(SERVICES[0])
    wire.send()
    wire.settle().check()
    wire.client.unsubscribe(SERVICES[0])
    wire.send()
    wire.settle().check()
    assert wire.client.views == {}


def test_who_is_behind_when_its_service_vanishes_hears_of_the_emptiness_first(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A).settle()
    wire.got(object)
    world.drop(SERVICES[0], 1)
    world.wait(21.0)
    wire.settle().check()
    assert [type(f) for f in wire.frames] == [frames.Snapshot, frames.Vanished]


def test_a_list_that_was_announced_but_vanished_unseen_is_forgotten(world):
    world.enter(SERVICES[0], 1)
    wire = Wire(world, A)
    wire.registry_reads()
    wire.registry_writes()
    wire.client_reads()
    assert not wire.client.views[SERVICES[0]].known
    wire.cut()
    world.drop(SERVICES[0], 1)
    world.wait(21.0)
    wire.connect()
    wire.settle().check()
    assert wire.client.views == {}
