"""Any order of commands and time leaves a book that agrees with itself and with a model."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from registrykit import TICK, Ledger, an_entry
from rollbook.frames import GonePod
from rollbook.problems import Problem
from rollbook_registry.catalog.groups import group_key
from rollbook_registry.catalog.leases import Kind
from rollbook_registry.catalog.merge import merge

SESSIONS = ("a", "b", "c")
OPERATORS = ("op1", "op2")
PODS = ("u", "v")
# An instance's own timings: turning silent again long before it would be removed, and being removed first.
TIMINGS = [
    {},
    {"preserved.heart.beat.timeout": "2000"},
    {"preserved.heart.beat.timeout": "2000", "preserved.ip.delete.timeout": "60000"},
    {"preserved.ip.delete.timeout": "4000"},
]

sessions = st.sampled_from(SESSIONS)
operators = st.sampled_from(OPERATORS)
pods = st.sampled_from(PODS)
own_entries = st.builds(
    an_entry,
    st.sampled_from([1, 2]),
    ip=st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    service=st.sampled_from(["orders", "invoices"]),
    cluster=st.sampled_from(["DEFAULT", "z"]),
    weight=st.sampled_from([1.0, 2.0]),
    owner=st.sampled_from(["", "", *PODS]),
    alive=st.sampled_from([None, True, False]),
    metadata=st.sampled_from(TIMINGS),
)
told_entries = st.builds(
    an_entry,
    st.sampled_from([1, 2]),
    ip=st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    service=st.sampled_from(["orders", "invoices"]),
    owner=pods,
    ready=st.sampled_from([None, True, False]),
    beats_required=st.booleans(),
    probed=st.booleans(),
)


def tried(command):
    """What a command returned, and the code of the problem if it was refused."""
    try:
        return command(), None
    except Problem as problem:
        return None, problem.code


class Book(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.heard: dict = {}
        """When each held entry was last heard, by (lease, ref)."""
        self.ended_pods: dict[str, str] = {}
        self.epoch = 0
        self.terms: dict[str, int] = defaultdict(int)

    # --- commands --------------------------------------------------------------------------------------

    def lease(self, name):
        return self.ledger.catalog.lease(name)

    def hear(self, name):
        for ref in self.lease(name).entries:
            self.heard[name, ref] = self.ledger.now

    def allowed(self, entries):
        return not any(e.owner in self.ended_pods for e in entries)

    @rule(name=sessions, term=st.integers(0, 5), holder=st.integers(0, 1))
    def attach(self, name, term, holder):
        known = self.lease(name)
        held = dict(known.entries) if known is not None else {}
        attachment = self.ledger.attach(name, term=term, holder=f"{name}{holder}")
        assert attachment.term > max(self.terms[name], term)
        assert attachment.resumed is bool(held)
        assert self.lease(name).entries == held
        self.terms[name] = attachment.term
        self.hear(name)

    @rule(name=operators, ahead=st.integers(-1, 1))
    def attach_operator(self, name, ahead):
        epoch = self.epoch + ahead
        attachment, code = tried(lambda: self.ledger.attach(name, operator=True, epoch=epoch))
        assert code == ("epoch_superseded" if ahead < 0 else None)
        if code:
            return
        self.terms[name] = attachment.term
        self.epoch = epoch
        self.hear(name)

    @rule(name=sessions, holder=st.integers(0, 1))
    def detach(self, name, holder):
        self.ledger.detach(name, f"{name}{holder}")

    @rule(name=sessions, entries=st.lists(own_entries, max_size=3))
    def register(self, name, entries):
        self.enter(name, entries)

    @rule(name=operators, entries=st.lists(told_entries, max_size=3))
    def tell(self, name, entries):
        self.enter(name, entries)

    def enter(self, name, entries):
        lease = self.lease(name)
        _, code = tried(lambda: self.ledger.register(name, *entries))
        if lease is None:
            assert code == "lease_ended"
        elif lease.kind is Kind.OPERATOR and lease.epoch < self.epoch:
            assert code == "epoch_superseded"
        else:
            assert (code is None) is self.allowed(entries)
        if code:
            return
        for entry in entries:
            assert lease.entries[entry.ref].entry in entries
        self.hear(name)

    @rule(entry=own_entries)
    def register_http(self, entry):
        name = f"http/{entry.ip}:{entry.port}"
        term, code = tried(lambda: self.ledger.register_http(entry))
        assert (code is None) is self.allowed([entry])
        if code:
            return
        assert term > self.terms[name]
        self.terms[name] = term
        self.heard[name, entry.ref] = self.ledger.now

    @rule(entry=own_entries)
    def beat_http(self, entry):
        name = f"http/{entry.ip}:{entry.port}"
        lease = self.lease(name)
        known = lease is not None and entry.ref in lease.entries
        _, code = tried(lambda: self.ledger.beat_http(entry.ref))
        if known:
            assert code is None
            self.heard[name, entry.ref] = self.ledger.now
        else:
            pod_ended = {"pod_gone", "pod_terminating"}
            assert code in (
                pod_ended if entry.owner in self.ended_pods else {"unknown_instance", "lease_ended"}
            )

    @rule(name=st.sampled_from([*SESSIONS, *OPERATORS]), behind=st.integers(0, 1), data=st.data())
    def beat(self, name, behind, data):
        lease = self.lease(name)
        down = data.draw(st.sets(st.sampled_from(list(lease.entries)))) if lease and lease.entries else ()
        before = {s: dict(i) for s, i in self.ledger.mirror.items()}
        _, code = tried(lambda: self.ledger.beat(name, term=self.terms[name] - behind, down=down))
        if code:
            assert code in {"lease_ended", "pod_gone", "pod_terminating"}
            assert behind or lease is None or lease.owner in self.ended_pods
            assert before == self.ledger.mirror
            return
        assert lease is not None
        assert not behind
        self.hear(name)
        assert all(h.down == (ref in down) for ref, h in lease.entries.items())

    @rule(name=sessions, data=st.data())
    def deregister(self, name, data):
        lease = self.lease(name)
        if lease and lease.entries:
            refs = data.draw(st.lists(st.sampled_from(list(lease.entries)), max_size=2))
            self.ledger.deregister(name, *refs)
            assert not set(refs) & set(lease.entries)

    @rule(entry=own_entries, everyone=st.booleans())
    def delete(self, entry, everyone):
        self.ledger.do(
            lambda c, now: c.deregister_everywhere(entry.ref, operators=everyone, now=now),
        )

    @rule(name=st.sampled_from([*SESSIONS, *OPERATORS]))
    def release(self, name):
        self.ledger.release(name)
        assert self.lease(name) is None

    @rule(name=operators)
    def synced(self, name):
        with contextlib.suppress(Problem):
            self.ledger.synced(name)
            others = [o for o in OPERATORS if o != name]
            assert [self.lease(o) for o in others] == [None]

    # So seldom that the others have something to do.
    @precondition(lambda self: len(self.ended_pods) < 1 or self.ledger.now > 200)
    @rule(uid=pods, how=st.sampled_from(["close", "fence", "fence with address"]))
    def end_pod(self, uid, how):
        if how == "close":
            self.ledger.close(uid)
            self.ended_pods.setdefault(uid, how)
        else:
            self.ledger.fence(GonePod(uid=uid, ips=["10.0.0.1"] if "address" in how else []))
            self.ended_pods[uid] = how

    @rule(ticks=st.sampled_from([1, 4, 20, 61, 121, 300]))
    def wait(self, ticks):
        self.ledger.wait(ticks * TICK)

    # --- what holds at any time ------------------------------------------------------------------------

    def held(self):
        leases = self.ledger.catalog._leases.values()
        return [(lease, ref, held) for lease in leases for ref, held in lease.entries.items()]

    @invariant()
    def the_services_are_the_merge_of_what_leases_hold(self):
        catalog = self.ledger.catalog
        by_group = defaultdict(set)
        for lease, ref, held in self.held():
            assert held.lease == lease.id
            assert held.entry.ref == ref
            by_group[group_key(ref)].add(held)
        assert {key: set(g.held.values()) for key, g in catalog.groups._groups.items()} == by_group
        merged = defaultdict(dict)
        for group in catalog.groups._groups.values():
            for (service, key), instance in merge(group.held.values()).visible.items():
                assert key not in merged[service]
                merged[service][key] = instance
        for service in catalog.services:
            # `shown` compares digest, counts, and what a subscriber made of all changes.
            assert self.ledger.shown(service.key) == merged.pop(service.key, {})
        assert not any(merged.values())

    @invariant()
    def who_is_shown_follows_from_who_said_what(self):
        said = defaultdict(lambda: ([], []))
        for lease, _, held in self.held():
            if held.entry.owner:
                said[held.entry.owner][lease.kind is Kind.OPERATOR].append(held)
        for owner, (own, told) in said.items():
            endpoints = {(h.entry.service, h.entry.ip, h.entry.port) for h in own}
            if told:
                answering = {h.entry.ip for h in own} & {h.entry.ip for h in told}
                latest = {}
                for h in sorted(told, key=lambda h: (h.epoch, h.order)):
                    latest[h.entry.service, h.entry.ip, h.entry.port] = h
                endpoints = {k for k, h in latest.items() if answering or not h.entry.beats_required}
            shown = {
                (i.key, service.key.name, i.ip, i.port)
                for service in self.ledger.catalog.services
                for i in service.instances.values()
                if i.owner == owner
            }
            assert {s[1:] for s in shown} == endpoints

    @invariant()
    def nothing_of_a_closed_or_fenced_pod_is_left(self):
        for _, _, held in self.held():
            assert held.entry.owner not in self.ended_pods

    @invariant()
    def silence_is_noticed_in_time_and_never_early(self):
        now = self.ledger.now
        for lease, ref, held in self.held():
            idle = now - self.heard[lease.id, ref]
            assert lease.last_seen(held) == self.heard[lease.id, ref]
            assert idle < held.remove_after + TICK
            if held.silent:
                assert idle >= held.unhealthy_after
            else:
                assert idle < held.unhealthy_after + TICK
        for lease in self.ledger.catalog._leases.values():
            assert lease.quiet == sum(h.silent for h in lease.entries.values())
            if lease.kind is not Kind.HTTP:
                assert {r for r, h in lease.entries.items() if h.down} == lease.down & set(lease.entries)

    @invariant()
    def every_deadline_is_in_the_wheel(self):
        for lease in self.ledger.catalog._leases.values():
            deadline = lease.deadline()
            if deadline is not None:
                slot = self.ledger.wheel._slot_of[lease.id]
                assert slot <= max(math.ceil(deadline / TICK), self.ledger.wheel._next)

    @invariant()
    def the_address_index_is_exact(self):
        addresses = defaultdict(set)
        for _, ref, _ in self.held():
            addresses[ref.ip].add(group_key(ref))
        assert self.ledger.catalog.groups._at_address == addresses

    @invariant()
    def nobody_is_kept_who_is_neither_attached_nor_holds_anything(self):
        for lease in self.ledger.catalog._leases.values():
            assert lease.entries or lease.holder is not None

    def teardown(self):
        catalog = self.ledger.catalog
        for name in (*SESSIONS, *OPERATORS):
            lease = self.lease(name)
            if lease is not None:
                self.ledger.detach(name, lease.holder)
        for _ in range(4):
            self.ledger.wait(610.0)
        assert self.held() == []
        assert (catalog._leases, catalog._ended, catalog._removed) == ({}, {}, {})
        assert (
            catalog.groups._groups,
            catalog.groups._at_address,
            catalog.groups._touched,
            catalog._empty,
        ) == ({}, {}, {}, {})
        assert len(catalog.services) == 0
        assert len(self.ledger.wheel) == 0
        assert not any(self.ledger.mirror.values())


TestBook = Book.TestCase
TestBook.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
