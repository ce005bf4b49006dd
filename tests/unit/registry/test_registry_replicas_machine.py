"""Replicas that tell each other what they write agree once all is delivered, whoever their clients go to.

What one replica writes arrives at each other one in order, at any later time. Clients move as they like, late
frames of their former sessions included. Nothing is lost here and nobody crashes; that is the simulator's.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from registrykit import Ledger, a_ref, an_entry, tried
from rollbook.frames import GonePod
from rollbook_registry.catalog import PodsMarked

REPLICAS = 3
CLIENTS = ("a", "b")
PODS = ("u", "v")
FINE = {None, "pod_terminating", "pod_gone"}
"""What anybody may be told."""

replicas = st.integers(0, REPLICAS - 1)
clients = st.sampled_from(CLIENTS)
entries = st.builds(
    an_entry,
    st.sampled_from([1, 2]),
    owner=st.sampled_from(["", *PODS]),
    weight=st.sampled_from([1.0, 2.0]),
    alive=st.sampled_from([None, True, False]),
)
told_entries = st.builds(
    an_entry, st.sampled_from([1, 2]), owner=st.sampled_from(PODS), beats_required=st.booleans()
)


class Replicas(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.replicas = [Ledger(ordinal=n) for n in range(REPLICAS)]
        self.links = {(a, b): deque() for a in range(REPLICAS) for b in range(REPLICAS) if a != b}
        self.terms: dict[str, int] = {}
        """What each client was told last."""
        self.at: dict[str, int] = {}
        """To which replica each is connected."""
        self.operators: list[str] = []
        self.complete: set[str] = set()
        """Operators that have entered a complete list."""
        self.ended: set[str] = set()

    # --- the network ------------------------------------------------------------------------------------

    def post(self):
        for n, replica in enumerate(self.replicas):
            told, replica.told = replica.told, []
            for other in range(REPLICAS):
                if other != n:
                    self.links[n, other].extend(told)

    def carry(self, link):
        """Deliver one message."""
        origin, to = link
        message = self.links[link].popleft()
        there = self.replicas[to]
        if isinstance(message, PodsMarked):
            there.mark(*message.pods)
        elif there.hear(message, origin=origin) == "needs_whole":
            # It is asked for; the answer has its place among what its owner says.
            self.post()
            owner = self.replicas[origin].catalog
            if message.id in set(owner.own()):
                self.links[link].append(owner.record(message.id))
        self.post()

    @rule(a=replicas, b=replicas, most=st.integers(1, 4))
    def deliver(self, a, b, most):
        if a != b:
            for _ in range(min(most, len(self.links[a, b]))):
                self.carry((a, b))

    @rule()
    def deliver_all(self):
        while busy := [link for link, messages in self.links.items() if messages]:
            self.carry(busy[0])
        self.all_agree()

    # --- clients ----------------------------------------------------------------------------------------

    def attach(self, name, n, **how):
        attachment = self.replicas[n].attach(name, term=self.terms.get(name, 0), holder=f"{name}@{n}", **how)
        assert attachment.term > self.terms.get(name, 0)
        self.terms[name] = attachment.term
        self.at[name] = n

    @rule(name=clients, n=replicas)
    def go_to(self, name, n):
        self.attach(name, n)

    @rule(name=clients, n=replicas)
    def break_off(self, name, n):
        """Some replica notices that the connection which the client had to it is broken."""
        self.replicas[n].detach(name, f"{name}@{n}")
        if self.at.get(name) == n:
            del self.at[name]

    @rule(name=clients, said=st.lists(entries, min_size=1, max_size=2))
    def register(self, name, said):
        if name not in self.at:
            return
        self.speak(name, lambda there: there.register(name, *said))

    @rule(
        name=clients,
        down=st.sets(st.builds(a_ref, st.sampled_from([1, 2]), owner=st.sampled_from(["", *PODS]))),
    )
    def beat(self, name, down):
        if name not in self.at:
            return
        self.speak(name, lambda there: there.beat(name, term=self.terms[name], down=down))

    def speak(self, name, command):
        """Whoever is told that its lease has ended leaves."""
        _, code = tried(lambda: command(self.replicas[self.at[name]]))
        assert code in {*FINE, "lease_ended"}
        if code == "lease_ended":
            del self.at[name]

    @rule(name=clients, port=st.sampled_from([1, 2]), owner=st.sampled_from(["", *PODS]))
    def deregister(self, name, port, owner):
        if name in self.at:
            self.replicas[self.at[name]].deregister(name, a_ref(port, owner=owner))

    @rule(name=clients, n=replicas)
    def say_goodbye(self, name, n):
        self.replicas[n].release(name)
        if self.at.get(name) == n:
            del self.at[name]

    @rule(n=replicas, entry=entries)
    def register_http(self, n, entry):
        _, code = tried(lambda: self.replicas[n].register_http(entry))
        assert code in FINE

    @rule(n=replicas, port=st.sampled_from([1, 2]), owner=st.sampled_from(["", *PODS]))
    def beat_http(self, n, port, owner):
        _, code = tried(lambda: self.replicas[n].beat_http(a_ref(port, owner=owner)))
        assert code in {*FINE, "unknown_instance", "lease_ended"}

    @rule(n=replicas, port=st.sampled_from([1, 2]), owner=st.sampled_from(["", *PODS]))
    def delete(self, n, port, owner):
        self.replicas[n].delete(a_ref(port, owner=owner))

    # --- operators and pods -----------------------------------------------------------------------------

    @rule(n=replicas)
    def operator_starts(self, n):
        """Each start is a new process: a new lease, and a new epoch."""
        self.operators.append(f"operator {len(self.operators)}")
        self.attach(self.operators[-1], n, operator=True, epoch=len(self.operators))

    @precondition(lambda self: self.operators)
    @rule(which=st.integers(0, 9), n=replicas)
    def operator_moves(self, which, n):
        """Reconnected, it says again what it had said to be complete."""
        name, epoch = self.operator(which)
        _, code = tried(lambda: self.attach(name, n, operator=True, epoch=epoch))
        assert code in {None, "epoch_superseded"}
        if not code and name in self.complete:
            self.replicas[n].synced(name)

    @precondition(lambda self: self.operators)
    @rule(which=st.integers(0, 9), said=st.lists(told_entries, max_size=2), complete=st.booleans())
    def operator_tells(self, which, said, complete):
        name, _ = self.operator(which)
        if name in self.at:
            there = self.replicas[self.at[name]]
            _, code = tried(lambda: there.register(name, *said))
            assert code in {*FINE, "epoch_superseded", "lease_ended"}
            if not code and complete:
                there.synced(name)
                self.complete.add(name)

    def operator(self, which):
        """One of the last two."""
        which = max(0, len(self.operators) - 1 - which % 2)
        return self.operators[which], which + 1

    @precondition(lambda self: len(self.ended) == 0)
    @rule(n=replicas, uid=st.sampled_from(PODS), gone=st.booleans())
    def end_pod(self, n, uid, gone):
        self.ended.add(uid)
        if gone:
            self.replicas[n].fence(GonePod(uid=uid, ips=["10.0.0.1"]))
        else:
            self.replicas[n].close(uid)

    @rule(ticks=st.sampled_from([1, 61, 121]))
    def wait(self, ticks):
        for _ in range(ticks):
            for replica in self.replicas:
                replica.step()
        assert len({replica.now for replica in self.replicas}) == 1
        self.post()

    # --- what holds -------------------------------------------------------------------------------------

    @invariant()
    def what_was_written_is_on_its_way(self):
        self.post()

    def all_agree(self):
        books = [replica.book() for replica in self.replicas]
        assert books[0] == books[1] == books[2]
        owned = [dict.fromkeys(r.catalog.own(), n) for n, r in enumerate(self.replicas)]
        owners = {**owned[0], **owned[1], **owned[2]}
        assert len(owners) == sum(map(len, owned)), "each lease has one owner"
        for replica in self.replicas:
            assert {id_: lease.origin for id_, lease in replica.catalog._leases.items()} == owners
            assert not any(lease.orphan for lease in replica.catalog._leases.values())
            for id_, n in owners.items():
                ours, theirs = replica.catalog.record(id_), self.replicas[n].catalog.record(id_)
                assert _facts(ours) == _facts(theirs)
            for uid in self.ended:
                assert replica.catalog.groups.get(uid) is None

    def teardown(self):
        self.deliver_all()
        self.wait(164)
        for replica in self.replicas:
            for name in (*CLIENTS, *self.operators):
                for n in range(REPLICAS):
                    replica.detach(name, f"{name}@{n}")
        self.wait(2410)
        self.deliver_all()
        for replica in self.replicas:
            assert replica.book() == {}
            assert replica.catalog.leases == 0, "nothing is left that nobody answers for"


def _facts(write):
    return (write.version, write.kind, write.attached, sorted(write.put, key=lambda r: r.order))


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
