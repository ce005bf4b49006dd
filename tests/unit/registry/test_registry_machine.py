"""Any order of commands and time leaves a book that agrees with itself, an oracle and its followers.

The oracle (``tests/support/oracle.py``) works out from the history of commands what has to be seen. A second
catalog follows by what the first one writes, and the first one is now and then made anew from what a disk
would hold.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque

import msgspec
import xxhash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import oracle as oracles
from oracle import CHECKER, OPERATOR, SESSION, Oracle
from registrykit import Ledger, an_entry, key_of, tried
from rollbook.frames import GonePod
from rollbook_registry.catalog import PodsMarked, Quotas
from rollbook_registry.catalog.definitions import (
    Configured,
    Defined,
    Definition,
    Named,
    Namespace,
    Overridden,
    Override,
    ServiceSettings,
)
from rollbook_registry.catalog.groups import group_key
from rollbook_registry.catalog.leases import DEFINITIONS, Kind, http_lease
from rollbook_registry.expiry import Protected

SESSIONS = ("a", "b", "c")
OPERATORS = ("op1", "op2")
CHECKS = "checker/0"
PODS = ("u", "v")
SERVICES = ("orders", "invoices")
# An instance's own timings: turning silent again long before it would be removed, and being removed first.
TIMINGS = [
    {},
    {"preserved.heart.beat.timeout": "2000"},
    {"preserved.heart.beat.timeout": "2000", "preserved.ip.delete.timeout": "60000"},
    {"preserved.ip.delete.timeout": "4000"},
]
REMEMBERED = 5
"""Older lists of a service from which a subscriber comes."""

sessions = st.sampled_from(SESSIONS)
operators = st.sampled_from(OPERATORS)
pods = st.sampled_from(PODS)
# Mostly the same few, so that much is said about the same.
ports = st.sampled_from([1, 1, 2])
ips = st.sampled_from(["10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2"])
services = st.sampled_from([SERVICES[0], *SERVICES])
own_entries = st.builds(
    an_entry,
    ports,
    ip=ips,
    service=services,
    cluster=st.sampled_from(["DEFAULT", "DEFAULT", "z"]),
    weight=st.sampled_from([1.0, 2.0]),
    owner=st.sampled_from(["", PODS[0], *PODS]),
    alive=st.sampled_from([None, True, False]),
    metadata=st.sampled_from(TIMINGS),
)
told_entries = st.builds(
    an_entry,
    ports,
    ip=ips,
    service=services,
    owner=st.sampled_from([PODS[0], *PODS]),
    ready=st.sampled_from([None, True, False]),
    beats_required=st.booleans(),
    probed=st.booleans(),
)
defined_entries = st.builds(
    an_entry,
    ports,
    service=st.sampled_from(SERVICES),
    ephemeral=st.just(False),
    alive=st.sampled_from([True, False]),
)


class Book(RuleBasedStateMachine):
    protected: Protected | None = None
    quotas: Quotas | None = None

    def __init__(self):
        super().__init__()
        self.oracle = Oracle()
        self.ledger = Ledger(protected=self.protected, quotas=self.quotas)
        self.follower = Ledger(ordinal=1)
        self.epoch = 0
        self.terms: dict[str, int] = defaultdict(int)
        self.settings: dict = {}
        self.named: Namespace | None = None
        self.past: dict = defaultdict(lambda: deque(maxlen=REMEMBERED))
        """Of each service: older numbers, and the lists that they stood for."""
        self.window = None

    # --- commands of clients ----------------------------------------------------------------------------

    def lease(self, name):
        return self.ledger.catalog.lease(name)

    def expected(self, lease, entries):
        """The code with which a registration has to be refused."""
        if any(e.owner in self.oracle.ended_pods for e in entries):
            return {"pod_gone", "pod_terminating"}
        if self.exceeds(lease, entries):
            return {"limit_reached"}
        return {None}

    def exceeds(self, lease, entries):
        shown = self.oracle.shown()
        instances, names = self.oracle.new(lease, entries)
        known = {s.key for s in self.ledger.catalog.services}
        quotas = self.quotas or Quotas()
        limits = [(quotas.max_instances, quotas.max_services)]
        if self.named is not None:
            limits.append((self.named.max_instances, self.named.max_services))
        return any(
            (most is not None and instances and len(shown) + len(instances) > most)
            or (names_most is not None and names - known and len(known | names) > names_most)
            for most, names_most in limits
        )

    @rule(name=sessions, term=st.integers(0, 5), holder=st.integers(0, 1))
    def attach(self, name, term, holder):
        held = self.oracle.of(name)
        attachment = self.ledger.attach(name, term=term, holder=f"{name}{holder}")
        assert attachment.term > max(self.terms[name], term)
        assert attachment.resumed is bool(held)
        self.terms[name] = attachment.term
        self.oracle.attach(name, SESSION, holder=f"{name}{holder}")

    @rule()
    def another_replica_compares(self):
        """The digest over all lists is worked out when somebody asks, so this comes at any time or never."""
        assert self.ledger.catalog.digest == whole_digest(self.ledger.catalog)

    @rule(name=operators, ahead=st.integers(-1, 1))
    def attach_operator(self, name, ahead):
        epoch = self.epoch + ahead
        if ahead < 0 and self.ledger.catalog._epoch < self.epoch:
            return  # of operators whose leases are no more a restarted registry knows nothing
        attachment, code = tried(lambda: self.ledger.attach(name, operator=True, epoch=epoch))
        assert code == ("epoch_superseded" if ahead < 0 else None)
        if code:
            return
        self.terms[name] = attachment.term
        self.epoch = epoch
        self.oracle.attach(name, OPERATOR, holder=f"session of {name}", epoch=epoch)

    @rule(name=st.sampled_from([*SESSIONS, *OPERATORS]), holder=st.integers(0, 1))
    def detach(self, name, holder):
        who = f"session of {name}" if name in OPERATORS else f"{name}{holder}"
        self.ledger.detach(name, who)
        self.oracle.detach(name, who)

    @rule(name=sessions, entries=st.lists(own_entries, min_size=1, max_size=3), afresh=st.booleans())
    def register(self, name, entries, afresh):
        if afresh and name not in self.oracle.kinds:
            self.attach(name, 0, 0)
        self.enter(name, entries)

    @rule(name=operators, entries=st.lists(told_entries, min_size=1, max_size=3), afresh=st.booleans())
    def tell(self, name, entries, afresh):
        if afresh and name not in self.oracle.kinds:
            self.attach_operator(name, 0)
        self.enter(name, entries)

    def enter(self, name, entries):
        if name not in self.oracle.kinds:
            expected = {"lease_ended"}
        elif self.oracle.kinds[name][0] == OPERATOR and self.oracle.kinds[name][1] < self.epoch:
            expected = {"epoch_superseded"}
        else:
            expected = self.expected(name, entries)
        _, code = tried(lambda: self.ledger.register(name, *entries))
        assert code in expected
        if not code:
            self.oracle.register(name, entries)

    @rule(entry=own_entries)
    def register_http(self, entry):
        name = http_lease(entry.ref)
        expected = self.expected(name, [entry])
        term, code = tried(lambda: self.ledger.register_http(entry))
        assert code in expected
        if not code:
            assert term > self.terms[name]
            self.terms[name] = term
            self.oracle.register_http(name, entry)

    @rule(entry=own_entries)
    def beat_http(self, entry):
        name = http_lease(entry.ref)
        known = (name, entry.ref) in self.oracle.said
        _, code = tried(lambda: self.ledger.beat_http(entry.ref))
        if known:
            assert code is None
            self.oracle.beat_http(name, entry.ref)
        else:
            pod_ended = {"pod_gone", "pod_terminating"}
            unknown = {"unknown_instance", "lease_ended"}
            assert code in (pod_ended if entry.owner in self.oracle.ended_pods else unknown)

    @rule(name=st.sampled_from([*SESSIONS, *OPERATORS]), behind=st.integers(0, 1), data=st.data())
    def beat(self, name, behind, data):
        held = [s.entry.ref for s in self.oracle.of(name)]
        down = data.draw(st.sets(st.sampled_from(held))) if held else set()
        owner = self.lease(name).owner if self.lease(name) else ""
        _, code = tried(lambda: self.ledger.beat(name, term=self.terms[name] - behind, down=down))
        if code:
            assert code in {"lease_ended", "pod_gone", "pod_terminating"}
            assert behind or name not in self.oracle.kinds or owner in self.oracle.ended_pods
            return
        assert name in self.oracle.kinds
        assert not behind
        self.oracle.beat(name, down)

    @rule(name=sessions, data=st.data())
    def deregister(self, name, data):
        held = [s.entry.ref for s in self.oracle.of(name)]
        if held:
            refs = data.draw(st.lists(st.sampled_from(held), max_size=2))
            self.ledger.deregister(name, *refs)
            self.oracle.deregister(name, refs)

    @rule(entry=own_entries, everyone=st.booleans())
    def delete(self, entry, everyone):
        before = set(self.oracle.said)
        gone = self.ledger.delete(entry.ref, operators=everyone)
        self.oracle.deregister_everywhere(entry.ref, operators=everyone)
        assert gone is (set(self.oracle.said) != before)

    @rule(name=st.sampled_from([*SESSIONS, *OPERATORS]))
    def release(self, name):
        self.ledger.release(name)
        self.oracle.release(name)

    @rule(name=operators)
    def synced(self, name):
        known = name in self.oracle.kinds
        current = known and self.oracle.kinds[name][1] == self.epoch
        _, code = tried(lambda: self.ledger.synced(name))
        assert code == (None if current else "epoch_superseded" if known else "lease_ended")
        if current:
            self.oracle.synced(name)

    # So seldom that the others have something to do.
    @precondition(lambda self: len(self.oracle.ended_pods) < 1 or self.ledger.now > 200)
    @rule(uid=pods, how=st.sampled_from(["close", "fence", "fence with address"]))
    def end_pod(self, uid, how):
        if how == "close":
            self.ledger.close(uid)
            self.oracle.close(uid)
            return
        ips = ["10.0.0.1"] if "address" in how else []
        news = self.ledger.catalog.pods.state(uid) != "fenced"
        self.ledger.fence(GonePod(uid=uid, ips=ips))
        self.oracle.fence(uid, ips if news else [])

    # --- the store's, and the checker's -----------------------------------------------------------------

    def lay_down(self, *rulings):
        self.ledger.rule(*rulings)
        self.follower.rule(*rulings)

    @rule(entry=defined_entries, lifted=st.booleans())
    def define(self, entry, lifted):
        definition = None if lifted else Definition(entry=entry)
        self.lay_down(Defined(entry.ref, definition))
        self.oracle.definitions.pop(entry.ref, None)
        if definition:
            self.oracle.definitions[entry.ref] = definition

    @rule(
        entry=st.one_of(own_entries, told_entries, defined_entries),
        override=st.sampled_from(
            [None, Override(enabled=False), Override(weight=5.0), Override(enabled=True)]
        ),
    )
    def override(self, entry, override):
        self.lay_down(Overridden(entry.ref, override))
        self.oracle.overrides.pop(entry.ref, None)
        if override:
            self.oracle.overrides[entry.ref] = override

    @rule(service=st.sampled_from([*SERVICES, "empty"]), threshold=st.sampled_from([None, 0.5, "lifted"]))
    def configure(self, service, threshold):
        found = None if threshold == "lifted" else ServiceSettings(protect_threshold=threshold)
        key = key_of(service)
        before = self.ledger.catalog.rulings.protect_threshold(key)
        self.ledger.take()
        self.lay_down(Configured(key, found))
        after = self.ledger.catalog.rulings.protect_threshold(key)
        assert after == (found.protect_threshold if found else None)
        assert [c.service for c in self.ledger.changes()] == ([key] if after != before else [])
        self.settings[key] = found

    @precondition(lambda self: self.quotas is not None)
    @rule(most=st.sampled_from([None, 1, 2]), names=st.sampled_from([None, 1]))
    def name(self, most, names):
        self.named = Namespace(max_instances=most, max_services=names)
        self.lay_down(Named("public", self.named))

    @rule(entry=defined_entries)
    def verdict(self, entry):
        if CHECKS not in self.oracle.holders:
            self.ledger.attach(CHECKS, kind=Kind.CHECKER)
            self.oracle.attach(CHECKS, CHECKER, holder=f"session of {CHECKS}")
        self.ledger.register(CHECKS, entry)
        self.oracle.register(CHECKS, [entry])

    @rule(entry=defined_entries)
    def no_verdict_any_more(self, entry):
        self.ledger.deregister(CHECKS, entry.ref)
        self.oracle.deregister(CHECKS, [entry.ref])

    # --- time -------------------------------------------------------------------------------------------

    @rule(ticks=st.sampled_from([1, 4, 20, 61, 121, 300]))
    def wait(self, ticks):
        for _ in range(ticks):
            self.tick()
        self.ledger.do(lambda c, now: c.sweep(now))

    def tick(self):
        speaking = self.oracle.speaking()
        self.ledger.step()
        self.oracle.now = self.ledger.now
        overdue = {(s.lease, s.entry.ref) for s in self.oracle.overdue()}
        kept = {lease for lease, ref in overdue if ref in getattr(self.lease(lease), "entries", ())}
        self.judge({lease for lease, _ in overdue}, kept, speaking)
        self.oracle.turn(self.ledger.now, kept=kept)

    def judge(self, overdue, kept, speaking):
        """Without protection everything that is overdue goes."""
        assert not kept

    # --- restarts ---------------------------------------------------------------------------------------

    @rule(rulings_first=st.booleans())
    def restart(self, rulings_first):
        """Of the registry: what the disk holds is all that it knows."""
        self.deliver()
        rulings = [
            *(Defined(ref, d) for ref, d in self.oracle.definitions.items()),
            *(Overridden(ref, o) for ref, o in self.oracle.overrides.items()),
            *(Configured(key, found) for key, found in self.settings.items()),
            *([Named("public", self.named)] if self.named is not None else []),
        ]
        former = self.ledger
        self.ledger = Ledger(protected=self.protected, quotas=self.quotas, now=former.now)
        self.ledger.disk.mark(tuple(former.disk.pods(former.now)), former.now)
        if rulings_first:
            self.ledger.rule(*rulings)
        self.ledger.restore(former.disk)
        if not rulings_first:
            self.ledger.rule(*rulings)
        self.oracle.restart()
        self.terms = defaultdict(int, {id_: w.term for id_, (_, w) in former.disk.leases.items()})
        self.past.clear()
        self.window = None
        before = self.follower.book()
        self.follower.orphan(0)
        assert self.follower.book() == before, "who follows keeps what a lost replica had"

    @rule()
    def another_follower(self):
        """Who begins in the middle, with whole records, has what one has who was there all along."""
        self.deliver()
        rulings = self.ledger.catalog.rulings
        self.follower = Ledger(ordinal=1)
        self.follower.rule(
            *(Defined(ref, d) for ref, d in rulings.definitions.items()),
            *(Overridden(ref, o) for ref, o in rulings.overrides.items()),
        )
        self.follower.mark(*self.ledger.catalog.pod_records(self.ledger.now))
        for id_ in list(self.ledger.catalog.own()):
            assert self.follower.hear(self.ledger.catalog.record(id_), origin=0) == "taken"

    def deliver(self):
        told, self.ledger.told = self.ledger.told, []
        self.follower.now = self.ledger.now
        for event in told:
            if isinstance(event, PodsMarked):
                self.follower.mark(*event.pods)
            else:
                assert self.follower.hear(event, origin=0) == "taken"

    # --- what holds at any time -------------------------------------------------------------------------

    def held(self):
        leases = self.ledger.catalog._leases.values()
        return [(lease, ref, held) for lease in leases for ref, held in lease.entries.items()]

    @invariant()
    def everybody_sees_what_follows_from_what_was_said(self):
        seen = {
            (service, key): {f: getattr(i, f) for f in oracles.FIELDS}
            for service, listed in self.ledger.book().items()
            for key, i in listed.items()
        }
        assert seen == self.oracle.shown()

    @invariant()
    def leases_hold_what_was_said_and_silence_is_noticed_in_time_and_never_early(self):
        held = {
            (lease.id, ref): (lease.last_seen(h), h.silent, h.down, h.proven, h.entry)
            for lease, ref, h in self.held()
            if lease.kind not in {Kind.DEFINITIONS, Kind.CHECKER}
        }
        assert held == {
            name: (s.heard, s.silent, s.down, s.proven, s.entry)
            for name, s in self.oracle.said.items()
            if s.kind != CHECKER
        }
        leases = self.ledger.catalog._leases
        assert set(leases) - {DEFINITIONS} == set(self.oracle.kinds), (set(leases), self.oracle.kinds)
        for lease in leases.values():
            assert (lease.holder is not None) is (lease.id in self.oracle.holders)
            assert lease.quiet == sum(h.silent for h in lease.entries.values())
            if lease.kind is not Kind.HTTP:
                assert {r for r, h in lease.entries.items() if h.down} == lease.down & set(lease.entries)

    @invariant()
    def followers_see_the_same(self):
        self.deliver()
        assert self.follower.book() == self.ledger.book()
        ours, theirs = self.ledger.catalog, self.follower.catalog
        assert {i: ours.record(i) for i in ours.own()} == {
            i: theirs.record(i) for i in theirs._leases if i != DEFINITIONS
        }
        assert list(theirs.own()) == []
        assert self.follower.told == [] or all(isinstance(t, PodsMarked) for t in self.follower.told)

    @invariant()
    def the_disk_holds_each_lease_whole(self):
        catalog = self.ledger.catalog
        on_disk = {id_: _sorted(w) for id_, (_, w) in self.ledger.disk.leases.items()}
        assert on_disk == {id_: _sorted(catalog.record(id_)) for id_ in catalog.own()}
        assert {p.uid for p in self.ledger.disk.pods(0.0)} == self.oracle.ended_pods

    @invariant()
    def whoever_applies_deltas_from_an_older_list_holds_the_list(self):
        for service in self.ledger.catalog.services:
            for life, number, listed in self.past[service.key]:
                found = service.since(number)
                if found is None:
                    assert life is not service
                    continue
                put, drop = found
                now = {**listed, **{i.key: i for i in put}}
                for key in drop:
                    now.pop(key, None)
                assert now == service.instances
            if not self.past[service.key] or self.past[service.key][-1][1] != service.number:
                self.past[service.key].append((service, service.number, dict(service.instances)))

    @invariant()
    def what_is_kept_beside_agrees(self):
        catalog = self.ledger.catalog
        by_group = defaultdict(set)
        addresses = defaultdict(set)
        for lease, ref, held in self.held():
            assert held.lease == lease.id
            assert held.entry.ref == ref
            assert held.ref is ref, "one object, wherever it is a key"
            by_group[group_key(ref)].add(held)
            addresses[ref.ip].add(group_key(ref))
        assert {key: set(g.held) for key, g in catalog.groups._groups.items()} == by_group
        assert set(catalog.groups._at_address) == set(addresses)
        for ip, there in addresses.items():
            assert set(catalog.groups.at_address(ip)) == there
        usage = catalog.services.usage("public")
        assert usage.instances == catalog.services.instances == len(self.oracle.shown())
        assert usage.services == len(catalog.services) == len(list(catalog.services))
        for key, found in self.settings.items():
            assert found is None or catalog.service(key) is not None

    def teardown(self):
        for name in (*SESSIONS, *OPERATORS):
            lease = self.lease(name)
            if lease is not None:
                self.ledger.detach(name, lease.holder)
        rulings = self.ledger.catalog.rulings
        self.ledger.deregister(CHECKS, *(s.entry.ref for s in self.oracle.of(CHECKS)))
        self.ledger.detach(CHECKS, f"session of {CHECKS}")
        self.lay_down(
            *(Defined(ref, None) for ref in list(rulings.definitions)),
            *(Configured(key, None) for key in list(rulings.services)),
        )
        for _ in range(4):
            self.ledger.wait(610.0)
        catalog = self.ledger.catalog
        assert self.held() == []
        assert set(catalog._leases) <= {CHECKS}
        assert (catalog._ended, catalog._removed) == ({}, {})
        assert (
            catalog.groups._groups,
            catalog.groups._at_address,
            catalog.groups.touched,
            catalog._empty,
        ) == ({}, {}, {}, {})
        assert len(catalog.services) == 0
        assert catalog.digest == 0
        assert (catalog.services._parts, catalog.services._stale) == ({}, {})
        assert len(self.ledger.wheel) == 0
        assert not any(self.ledger.mirror.values())


def whole_digest(catalog):
    digest = 0
    for service in catalog.services:
        if service.digest:
            digest ^= xxhash.xxh64_intdigest(f"{service.key} {service.digest}".encode())
    return digest


def _sorted(write):
    put = sorted(write.put, key=lambda r: r.order)
    return msgspec.structs.replace(write, put=put, reason="")


class ProtectedBook(Book):
    """Few may end by silence in one window."""

    protected = Protected(share=0.5, floor=1, window=60.0)

    def judge(self, overdue, kept, speaking):
        now, limits = self.ledger.now, self.protected
        if overdue and (self.window is None or now >= self.window["ends"]):
            self.window = {"ends": now + limits.window, "leases": len(speaking), "spent": 0, "kept": set()}
        window = self.window
        if window is None:
            assert not kept
            return
        base = min(window["leases"], len(speaking) + window["spent"])
        allowed = max(limits.floor, math.floor(limits.share * base))
        gone = overdue - kept
        window["spent"] += len(gone)
        assert not gone or window["spent"] <= allowed
        assert kept <= window["kept"] or window["spent"] >= allowed, "nobody is kept without need"
        window["kept"] = kept


class SmallBook(Book):
    """It is full before long."""

    quotas = Quotas(max_instances=3, max_services=2)


TestBook = Book.TestCase
TestBook.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestProtectedBook = ProtectedBook.TestCase
TestProtectedBook.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestSmallBook = SmallBook.TestCase
TestSmallBook.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
