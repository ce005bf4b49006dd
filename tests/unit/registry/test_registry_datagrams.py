"""Pushes over UDP: who is sent what, and when; the network between is the tests'."""

from __future__ import annotations

import collections

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from registrykit import key_of, tried
from rollbook_registry.push import Datagram, DatagramOutlet, Terms
from rollbook_registry.push.datagrams import MAX_DATAGRAM, REMEMBERED, Outcome

ORDERS, CARTS = key_of("orders"), key_of("carts")
A, B = ("10.0.0.1", 30001), ("10.0.0.2", 30002)
FIRST = 1_700_000_000_000_000


class Room:
    """An outlet, its clock, and lists that are numbers."""

    def __init__(self, **terms) -> None:
        self.now = 100.0
        self.lists: collections.Counter = collections.Counter()
        self.size = 0
        self.encoded: list = []
        self.oversized: list = []
        self.counts: collections.Counter = collections.Counter()
        self.seconds: list[float] = []
        self.woken = 0
        self.outlet = DatagramOutlet(
            self.encode,
            clock=lambda: self.now,
            wake=self.wake,
            meter=self,
            oversized=lambda *told: self.oversized.append(told),
            terms=Terms(**terms),
            first_token=FIRST,
        )

    def encode(self, service, clusters, token):
        self.encoded.append((service, clusters, token))
        return f"{token} {service.name} {clusters or '-'} {self.lists[service]}".encode().ljust(self.size)

    def wake(self):
        self.woken += 1

    def pushed(self, seconds):
        self.seconds.append(seconds)

    def counted(self, outcome):
        self.counts[Outcome(outcome)] += 1

    def change(self, service=ORDERS):
        self.lists[service] += 1
        self.outlet.changed(service)

    def take(self):
        """What is sent, as (to whom, token, list)."""
        return [self.read(datagram) for datagram in self.outlet.take()]

    @staticmethod
    def read(datagram: Datagram):
        token, service, _, number = datagram.data.decode().split()
        return (datagram.address, datagram.port), int(token), f"{service} {number}"

    def ack(self, who, token):
        self.outlet.acknowledge(*who, token)


def test_a_change_goes_to_who_follows_the_service_and_to_nobody_else():
    room = Room()
    room.outlet.subscribe(ORDERS, *A)
    room.outlet.subscribe(CARTS, *B)
    assert room.take() == []  # the answer to the request carried the list
    room.change()
    assert room.take() == [(A, FIRST, "orders 1")]
    assert room.take() == []


def test_all_who_ask_for_the_same_get_the_same_bytes_made_once():
    room = Room()
    for n in range(50):
        room.outlet.subscribe(ORDERS, f"10.0.1.{n}", 30000)
    room.outlet.subscribe(ORDERS, *A, clusters="a,b")
    room.change()
    sent = list(room.outlet.take())
    assert len(sent) == 51
    assert len({id(d.data) for d in sent}) == 2
    assert [(s, c) for s, c, _ in room.encoded] == [(ORDERS, ""), (ORDERS, "a,b")]


def test_what_changes_while_a_push_is_in_flight_is_merged_into_the_next():
    room = Room()
    room.outlet.subscribe(ORDERS, *A)
    room.change()
    [(_, token, _)] = room.take()
    room.now += 0.1
    for _ in range(5):
        room.change()
        assert room.take() == []
    room.now += 0.2
    room.ack(A, token)
    assert room.take() == [(A, FIRST + 1, "orders 6")]
    room.now += 0.4
    room.ack(A, FIRST + 1)
    assert room.take() == []
    assert room.seconds == [pytest.approx(0.3), pytest.approx(0.6)]
    assert room.counts[Outcome.CONFLATED] == 5
    assert room.counts[Outcome.ACKNOWLEDGED] == 2


def test_what_is_sent_again_is_the_newest_list_and_never_what_was_lost():
    room = Room(interval=1.0, tries=3)
    room.outlet.subscribe(ORDERS, *A)
    room.change()
    assert room.take() == [(A, FIRST, "orders 1")]
    room.now += 0.5
    room.change()
    assert room.take() == []
    room.now += 0.5
    assert room.take() == [(A, FIRST + 1, "orders 2")]
    room.now += 1.0
    assert room.take() == [(A, FIRST + 1, "orders 2")]  # nothing has changed: the very same bytes
    room.ack(A, FIRST + 1)
    assert room.seconds == [pytest.approx(2.0)]  # counted from the change that was lost at first
    room.now += 10
    assert room.take() == []


def test_who_never_acknowledges_is_forgotten_after_bounded_tries_until_it_asks_again():
    room = Room(interval=1.0, tries=3)
    room.outlet.subscribe(ORDERS, *A)
    room.change()
    sent = 0
    for _ in range(50):
        sent += len(room.take())
        room.change()
        room.now += 0.25
    assert sent == 3
    assert len(room.outlet) == 0
    assert room.counts[Outcome.FORGOTTEN] == 1
    assert room.outlet.next_due() is None
    room.outlet.subscribe(ORDERS, *A)
    room.change()
    assert [who for who, _, _ in room.take()] == [A]


def test_who_answers_late_is_not_taken_for_silent():
    room = Room(interval=1.0, tries=2, time_to_live=1000.0)
    room.outlet.subscribe(ORDERS, *A)
    late = []
    for _ in range(20):
        room.change()
        late += [token for _, token, _ in room.take()]
        room.now += 1.0
        if len(late) > 1:  # each answer comes after the next push has gone out
            room.ack(A, late.pop(0))
    assert len(room.outlet) == 1
    assert room.counts[Outcome.FORGOTTEN] == 0


def test_an_acknowledgement_of_an_older_push_has_the_newest_sent_once_more():
    room = Room()
    room.outlet.subscribe(ORDERS, *A)
    room.change()
    [(_, old, _)] = room.take()
    room.now += 1.0
    room.change()
    [(_, new, newest)] = room.take()
    room.ack(A, new)
    assert room.take() == []
    room.ack(A, old)  # it took the old list after the new one
    assert room.take() == [(A, new, newest)]
    room.ack(A, new)
    room.ack(A, old)  # once only: datagrams can be made up
    assert room.take() == []
    assert room.counts[Outcome.STALE] == 1


def test_nobody_acknowledges_for_another():
    room = Room()
    room.outlet.subscribe(ORDERS, *A)
    room.outlet.subscribe(CARTS, *B)
    room.change(ORDERS)
    room.change(CARTS)
    [(_, a, _), (_, b, _)] = room.take()
    for who, token in ((B, a), (A, b), ((A[0], A[1] + 1), a), (A, a + 100), (A, 0), (A, -1)):
        room.ack(who, token)
    assert room.counts == {Outcome.SENT: 2, Outcome.UNKNOWN: 6}
    room.now += 1.0
    assert len(room.take()) == 2


def test_who_asks_no_more_is_forgotten_and_who_does_is_not():
    room = Room(time_to_live=30.0)
    room.outlet.subscribe(ORDERS, *A)
    room.outlet.subscribe(ORDERS, *B)
    room.now += 20
    room.outlet.subscribe(ORDERS, *A)
    assert room.outlet.next_due() == 130.0
    room.now += 10
    room.change()
    assert [who for who, _, _ in room.take()] == [A]
    assert len(room.outlet) == 1
    room.ack(A, FIRST)
    room.now += 20
    assert room.take() == []
    assert len(room.outlet) == 0
    assert room.outlet.next_due() is None


def test_asking_again_does_not_have_a_push_sent_twice():
    room = Room()
    room.outlet.subscribe(ORDERS, *A)
    room.change()
    assert len(room.take()) == 1
    room.outlet.subscribe(ORDERS, *A)
    assert room.take() == []
    assert len(room.outlet) == 1


def test_who_unsubscribes_is_sent_nothing_more():
    room = Room()
    room.outlet.subscribe(ORDERS, *A)
    room.outlet.subscribe(ORDERS, *A, clusters="a")
    room.change()
    room.outlet.unsubscribe(ORDERS, *A)
    room.outlet.unsubscribe(ORDERS, *B)
    room.outlet.unsubscribe(CARTS, *A)
    assert len(room.take()) == 1
    assert len(room.outlet) == 1


def test_a_list_that_fits_into_no_datagram_is_told_once_and_what_fits_again_is_sent():
    room = Room()
    room.outlet.subscribe(ORDERS, *A)
    room.outlet.subscribe(ORDERS, *B)
    room.size = MAX_DATAGRAM + 1
    for _ in range(3):
        room.change()
        assert room.take() == []
    assert room.oversized == [(ORDERS, MAX_DATAGRAM + 1)]
    assert room.counts[Outcome.TOO_LARGE] == 6
    assert len(room.encoded) == 3
    room.size = MAX_DATAGRAM
    room.change()
    sent = list(room.outlet.take())
    assert [len(d.data) for d in sent] == [MAX_DATAGRAM, MAX_DATAGRAM]
    for datagram in sent:
        room.ack((datagram.address, datagram.port), room.read(datagram)[1])
    room.size = MAX_DATAGRAM + 1
    room.change()
    assert room.take() == []
    assert len(room.oversized) == 2


def test_bytes_are_passed_on_as_they_are():
    made = bytes(range(256)) * 8
    room = Room()
    room.encode = lambda *_: made
    room.outlet._encode = room.encode
    room.outlet.subscribe(ORDERS, *A)
    room.change()
    [datagram] = room.outlet.take()
    assert datagram.data is made


@pytest.mark.parametrize(
    "address",
    [
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "127.0.0.1",
        "127.9.9.9",
        "orders",
        "",
        "10.0.0.1/32",
        "::1",
        "fd00::1",
    ],
)
def test_addresses_that_are_no_other_host_are_refused(address):
    room = Room()
    _, code = tried(lambda: room.outlet.subscribe(ORDERS, address, 30000))
    assert code == "bad_value"
    assert len(room.outlet) == 0
    assert not room.outlet._feeds


@pytest.mark.parametrize("address", ["ff02::1", "::", "::1", "10.0.0.1", "::ffff:10.0.0.1"])
def test_addresses_that_are_no_other_host_of_ipv6_are_refused(address):
    room = Room(version=6)
    assert tried(lambda: room.outlet.subscribe(ORDERS, address, 30000))[1] == "bad_value"


def test_an_address_is_known_in_every_spelling():
    room = Room(version=6)
    room.outlet.subscribe(ORDERS, "fd00:0:0::0A", 30000)
    room.change()
    [(who, token, _)] = room.take()
    room.ack(("fd00::a", 30000), token)
    assert who == ("fd00::a", 30000)
    assert room.counts[Outcome.ACKNOWLEDGED] == 1


@pytest.mark.parametrize("port", [-1, 0, 53, 123, 1023, 65536])
def test_ports_of_servers_are_refused(port):
    room = Room()
    assert tried(lambda: room.outlet.subscribe(ORDERS, A[0], port))[1] == "bad_value"


def test_this_machine_may_subscribe_where_that_is_allowed():
    room = Room(loopback=True)
    room.outlet.subscribe(ORDERS, "127.0.0.1", 30000)
    assert len(room.outlet) == 1


def test_there_are_no_more_subscriptions_than_there_may_be():
    room = Room(most=3, most_per_address=2)
    for service in (ORDERS, CARTS):
        room.outlet.subscribe(service, *A)
    third = key_of("third")
    assert tried(lambda: room.outlet.subscribe(third, *A))[1] == "limit_reached"
    room.outlet.subscribe(third, *B)
    assert tried(lambda: room.outlet.subscribe(ORDERS, *B))[1] == "limit_reached"
    for service in (ORDERS, CARTS):  # renewing is always possible
        room.outlet.subscribe(service, *A)
    room.outlet.unsubscribe(CARTS, *A)
    room.outlet.subscribe(ORDERS, *B)
    assert len(room.outlet) == 3


def test_nothing_is_left_of_who_has_gone():
    room = Room(tries=1)
    for n in range(20):
        room.outlet.subscribe(key_of(f"s{n % 4}"), f"10.0.0.{n}", 30000, clusters=str(n % 3))
    for _ in range(3):
        for n in range(4):
            room.change(key_of(f"s{n}"))
        room.take()
        room.now += 1
    room.take()
    outlet = room.outlet
    assert len(outlet) == 0
    assert not any((outlet._feeds, outlet._by_address, outlet._by_token, outlet._ready, outlet._flying))


def test_who_stops_in_the_middle_finds_the_rest_later_and_newer():
    room = Room()
    room.outlet.subscribe(ORDERS, *A)
    room.outlet.subscribe(ORDERS, *B)
    room.change()
    first = room.read(next(room.outlet.take()))
    assert first == (A, FIRST, "orders 1")
    assert room.outlet.next_due() == room.now
    room.change()
    assert room.take() == [(B, FIRST + 1, "orders 2")]


class Network(RuleBasedStateMachine):
    """Loss, duplicates, reordering and delay, to clients of both kinds.

    A *wary* client takes no list that is older than its own, a *plain* one takes whatever comes (Nacos' for
    Node does). Whoever acknowledges holds the newest list in the end, and what a subscriber costs is bounded.
    """

    CLIENTS = (("10.0.0.1", 30001, True), ("10.0.0.2", 30002, False), ("10.0.0.2", 30003, False))
    SERVICES = (ORDERS, CARTS)

    @initialize(tries=st.integers(1, 4))
    def begin(self, tries):
        self.room = Room(interval=1.0, tries=tries, time_to_live=30.0)
        self.tries = tries
        self.held = {(a, p, s): (0, 0) for a, p, _ in self.CLIENTS for s in self.SERVICES}
        self.datagrams: list = []
        self.acks: list = []
        self.silent: collections.Counter = collections.Counter()
        """Datagrams to a subscription since anything was heard of it."""
        self.subscribe_all()

    def subscribe_all(self):
        for address, port, _ in self.CLIENTS:
            for service in self.SERVICES:
                # The answer to the request carries the list.
                if self.room.lists[service] >= self.held[address, port, service][1]:
                    self.held[address, port, service] = (0, self.room.lists[service])
                self.room.outlet.subscribe(service, address, port)

    def flush(self):
        for datagram in self.room.outlet.take():
            who, token, text = self.room.read(datagram)
            name, number = text.split()
            assert int(number) == self.room.lists[key_of(name)]  # always the newest
            self.silent[who, name] += 1
            assert self.silent[who, name] <= self.tries
            self.datagrams.append((who, token, key_of(name), int(number)))
            # A network that keeps a datagram for longer than the next few pushes is another one.
            mine = [d for d in self.datagrams if d[0] == who and d[2] == key_of(name)]
            if len({d[1] for d in mine}) >= REMEMBERED:
                self.datagrams.remove(mine[0])

    @rule(service=st.sampled_from(SERVICES))
    def change(self, service):
        self.room.change(service)
        self.flush()

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0]))
    def wait(self, seconds):
        self.room.now += seconds
        self.flush()

    @rule()
    def ask(self):
        forgotten = {
            (who[:2], s.name)
            for who in self.CLIENTS
            for s in self.SERVICES
            if who[:2] not in self.room.outlet._feeds.get(s, {}).get("", _Nobody).subscribers
        }
        for one in forgotten:
            self.silent[one] = 0
        # Nor does the network keep one for longer than the registry remembers to whom it was sent.
        self.datagrams = [d for d in self.datagrams if (d[0], d[2].name) not in forgotten]
        self.subscribe_all()

    @precondition(lambda self: self.datagrams)
    @rule(data=st.data(), twice=st.booleans())
    def deliver(self, data, twice):
        index = data.draw(st.integers(0, len(self.datagrams) - 1))
        datagram = self.datagrams[index] if twice else self.datagrams.pop(index)
        self.arrive(*datagram)

    def arrive(self, who, token, service, number):
        wary = dict((c[:2], c[2]) for c in self.CLIENTS)[who]  # noqa: C402  # pairs of pairs
        held = self.held[*who, service]
        if not wary or number >= held[1]:
            self.held[*who, service] = (token, number)
        self.acks.append((who, token, service))

    @precondition(lambda self: self.datagrams)
    @rule(data=st.data())
    def lose(self, data):
        self.datagrams.pop(data.draw(st.integers(0, len(self.datagrams) - 1)))

    @precondition(lambda self: self.acks)
    @rule(data=st.data(), twice=st.booleans())
    def acknowledge(self, data, twice):
        index = data.draw(st.integers(0, len(self.acks) - 1))
        who, token, service = self.acks[index] if twice else self.acks.pop(index)
        before = self.room.counts[Outcome.UNKNOWN]
        self.room.ack(who, token)
        if self.room.counts[Outcome.UNKNOWN] == before:
            self.silent[who, service.name] = 0
        self.flush()

    @precondition(lambda self: self.acks)
    @rule(data=st.data())
    def lose_ack(self, data):
        self.acks.pop(data.draw(st.integers(0, len(self.acks) - 1)))

    @invariant()
    def bounded(self):
        outlet = self.room.outlet
        assert len(outlet) <= len(self.CLIENTS) * len(self.SERVICES)
        assert len(outlet._by_token) <= REMEMBERED * len(outlet)
        assert not outlet._ready  # all of it has been sent
        assert set(outlet._flying) <= set(outlet._asked)

    def teardown(self):
        """The network mends: whoever is still a subscriber comes to hold the newest list."""
        if not hasattr(self, "room"):
            return
        for _ in range(100):
            if not (self.datagrams or self.acks or self.room.outlet._flying):
                break
            self.flush()
            while self.datagrams:
                self.arrive(*self.datagrams.pop(0))
            while self.acks:
                who, token, service = self.acks.pop(0)
                self.silent[who, service.name] = 0
                self.room.ack(who, token)
                self.flush()
            self.room.now += 1.0
            self.flush()
        assert not self.room.outlet._flying
        for service, feeds in self.room.outlet._feeds.items():
            for who in feeds[""].subscribers:
                assert self.held[*who, service][1] == self.room.lists[service], (who, service)


class _Nobody:
    subscribers: dict = {}  # noqa: RUF012  # never written to


TestNetwork = Network.TestCase
