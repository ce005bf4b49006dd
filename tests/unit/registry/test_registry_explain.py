"""Explain: which rule decided, as a code and as a sentence; every rule is reached."""

from __future__ import annotations

import pytest

from registrykit import Ledger, a_ref, a_write, an_entry
from rollbook.frames import GonePod
from rollbook_registry.catalog.definitions import Defined, Definition, Overridden, Override
from rollbook_registry.catalog.explain import explain
from rollbook_registry.catalog.leases import Kind
from rollbook_registry.catalog.merge import Why
from rollbook_registry.expiry import Protected

POD = {"owner": "u"}


def beats(ledger):
    ledger.enter("a", an_entry())


def silent(ledger):
    ledger.enter("a", an_entry())
    ledger.wait(15.0)


def application_down(ledger):
    ledger.enter("a", an_entry(alive=False))


def unproven(ledger):
    ledger.enter("a", an_entry(alive=None))


def probed(ledger):
    ledger.enter("operator", an_entry(**POD, probed=True, ready=True), operator=True)
    ledger.enter("a", an_entry(**POD, alive=None))


def unprobed(ledger):
    ledger.enter("operator", an_entry(**POD, ready=True), operator=True)
    ledger.enter("a", an_entry(**POD, alive=None))


def pod_answers(ledger):
    ledger.enter("operator", an_entry(**POD), operator=True)
    ledger.enter("a", an_entry(81, **POD))


def pod_silent(ledger):
    pod_answers(ledger)
    ledger.wait(15.0, "operator")


def operator_only(ledger):
    ledger.enter("operator", an_entry(**POD), operator=True)


def unconfirmed(ledger):
    operator_only(ledger)
    ledger.wait(15.0)


def define(ledger):
    entry = an_entry(ephemeral=False)
    ledger.rule(Defined(entry.ref, Definition(entry=entry)))


def verdict(ledger, *, works=True):
    ledger.attach("checker/0", kind=Kind.CHECKER)
    ledger.register("checker/0", an_entry(ephemeral=False, alive=works))


def checked(ledger):
    define(ledger)
    verdict(ledger)


def check_failed(ledger):
    define(ledger)
    verdict(ledger, works=False)


def beats_required(ledger):
    ledger.enter("operator", an_entry(**POD, beats_required=True), operator=True)


def not_named(ledger):
    ledger.enter("operator", an_entry(**POD, ip="10.0.0.9"), operator=True)
    ledger.enter("a", an_entry(**POD))


def publisher(ledger):
    ledger.enter("operator", an_entry(**POD), operator=True)
    ledger.enter("a", an_entry(**POD))


def older(ledger):
    ledger.enter("a", an_entry(**POD))
    ledger.enter("b", an_entry(**POD))


def older_operator(ledger):
    ledger.enter("operator", an_entry(**POD), operator=True, epoch=1)
    ledger.enter("another", an_entry(**POD), operator=True, epoch=2)


def equal(ledger):
    ledger.enter("a", an_entry())
    ledger.enter("b", an_entry())


def orphan(ledger):
    ledger.hear(a_write(an_entry(), lease="lost"))
    ledger.enter("a", an_entry())
    ledger.orphan()


def pods_orphan(ledger):
    ledger.hear(a_write(an_entry(**POD), lease="lost"))
    ledger.enter("a", an_entry(**POD))
    ledger.orphan()


REACHED = [
    (Why.BEATS, beats, "it is healthy: its publisher beats and says that the application works"),
    (Why.SILENT, silent, "it is not healthy: its publisher is silent"),
    (
        Why.APPLICATION_DOWN,
        application_down,
        "it is not healthy: its publisher beats and says that the application does not work",
    ),
    (Why.UNPROVEN, unproven, "it is not healthy: its publisher has not yet seen the application work"),
    (
        Why.PROBED,
        probed,
        f"it is healthy: {Why.PROBED.value}",
    ),
    (
        Why.UNPROBED,
        unprobed,
        f"it is not healthy: {Why.UNPROBED.value}",
    ),
    (
        Why.POD_ANSWERS,
        pod_answers,
        "it is healthy: its sidecar answers for the pod, but does not know this port",
    ),
    (Why.POD_SILENT, pod_silent, "it is not healthy: its sidecar does not know this port, and is silent"),
    (Why.OPERATOR_ONLY, operator_only, "it is healthy: only the operator speaks for it"),
    (
        Why.UNCONFIRMED,
        unconfirmed,
        "it is healthy: the operator that entered it is silent, and nobody else speaks for it",
    ),
    (Why.DEFINED, define, "it is healthy: it is defined to be there, and not checked"),
    (Why.CHECKED, checked, "it is healthy: the registry's check of it succeeded last"),
    (Why.CHECK_FAILED, check_failed, "it is not healthy: the registry's check of it failed last"),
    (
        Why.BEATS_REQUIRED,
        beats_required,
        "it is not in the book: not shown: it has a sidecar, and that does not beat",
    ),
    (
        Why.NOT_NAMED,
        not_named,
        "it is not in the book: not shown: the operator speaks for its pod, and does not name it",
    ),
    (Why.PUBLISHER, publisher, "it is healthy: its publisher beats and says that the application works"),
    (Why.OLDER, older, "it is healthy: its publisher beats and says that the application works"),
    (Why.OLDER, older_operator, "it is healthy: only the operator speaks for it"),
    (Why.EQUAL, equal, "it is healthy: its publisher beats and says that the application works"),
    (Why.ORPHAN, orphan, "it is healthy: its publisher beats and says that the application works"),
    (Why.ORPHAN, pods_orphan, "it is healthy: its publisher beats and says that the application works"),
    (Why.VERDICT, checked, "it is healthy: the registry's check of it succeeded last"),
]


@pytest.fixture
def ledger():
    return Ledger()


def explained(ledger, ref=None):
    return explain(ledger.catalog, ref or a_ref(), ledger.now)


@pytest.mark.parametrize(("why", "made", "because"), REACHED, ids=lambda v: getattr(v, "__name__", str(v)))
def test_each_rule_is_told_where_it_decides(ledger, why, made, because):
    made(ledger)
    owners = {h.entry.owner for g in ledger.catalog.groups._groups.values() for h in g.held}
    found = explained(ledger, a_ref(owner=owners.pop()))
    assert found.because == because
    (entry, *_) = [e for e in found.entries if e.rule == why.name.lower()]
    assert entry.because == why.value
    hidden = why.value.startswith("not shown") or why in {Why.PUBLISHER, Why.VERDICT}
    assert entry.shown is not hidden


def test_every_rule_is_reached_above():
    assert {why for why, _, _ in REACHED} == set(Why)


def test_it_shows_the_very_instance_that_the_list_has(ledger):
    publisher(ledger)
    assert explained(ledger, a_ref(**POD)).instance == ledger.only()
    assert explained(ledger, a_ref(99, **POD)).instance is None


def test_of_what_nobody_speaks_for_it_says_so(ledger):
    found = explained(ledger)
    assert found.because == "it is not in the book: nobody speaks for it; its events may say why"
    assert (found.instance, found.entries, found.pod, found.override) == (None, [], "", None)


@pytest.mark.parametrize(("end", "state", "gone"), [
    ("close", "closed", "terminating"), ("fence", "fenced", "confirmed gone"),
])  # fmt: skip
def test_of_a_pod_that_may_not_speak_it_says_why(ledger, end, state, gone):
    publisher(ledger)
    if end == "close":
        ledger.close("u")
    else:
        ledger.fence(GonePod(uid="u"))
    found = explained(ledger, a_ref(**POD))
    assert found.pod == state
    assert found.because == f"it is not in the book: its pod is {gone}, and nothing is taken in its name"


def test_readiness_and_being_disabled_are_parts_of_the_sentence(ledger):
    ledger.enter("operator", an_entry(**POD, ready=False, enabled=False), operator=True)
    assert explained(ledger, a_ref(**POD)).because == (
        "it is not healthy: only the operator speaks for it; Kubernetes does not call its pod ready; "
        "it is disabled"
    )


def test_an_override_is_shown_with_its_reason(ledger):
    beats(ledger)
    ledger.rule(Overridden(a_ref(), Override(enabled=False, reason="disk replaced", at=5.0)))
    found = explained(ledger)
    assert found.because.endswith(
        "; it is disabled; an administrator's override stands above what its publishers say"
    )
    assert (found.override.enabled, found.override.reason, found.override.at) == (False, "disk replaced", 5.0)
    assert not found.instance.enabled


def test_an_override_of_what_is_not_there_is_shown_too(ledger):
    ledger.rule(Overridden(a_ref(), Override(weight=2.0)))
    assert explained(ledger).override.weight == 2.0


def test_the_sentence_is_that_of_the_publisher_that_counts(ledger):
    ledger.enter("a", an_entry(**POD))
    ledger.enter("b", an_entry(**POD, alive=False))
    found = explained(ledger, a_ref(**POD))
    assert found.because.startswith(
        "it is not healthy: its publisher beats and says that the application does"
    )
    assert [(e.rule, e.shown) for e in found.entries] == [("application_down", True), ("older", False)]


def test_of_a_pod_in_two_services_each_has_its_own_sentence(ledger):
    ledger.enter("a", an_entry(**POD), an_entry(**POD, service="invoices", alive=False))
    assert explained(ledger, a_ref(**POD)).because.startswith("it is healthy")
    assert explained(ledger, a_ref(**POD, service="invoices")).because.startswith("it is not healthy")


def test_of_what_is_listed_side_by_side_the_one_with_the_plain_key_is_meant(ledger):
    ledger.enter("a", an_entry(weight=1.0))
    ledger.enter("b", an_entry(weight=2.0, alive=False))
    found = explained(ledger)
    assert (found.instance.weight, found.because[:13]) == (1.0, "it is healthy")
    assert [e.shown for e in found.entries] == [True, True]


def test_it_tells_silence_and_its_limits_of_what_this_replica_hears(ledger):
    ledger.enter("a", an_entry(metadata={"preserved.heart.beat.timeout": "4000"}))
    ledger.wait(3.0)
    (entry,) = explained(ledger).entries
    assert (entry.silent_for, entry.unhealthy_after, entry.remove_after, entry.replica, entry.term) == (
        3.0, 4.0, 30.0, 0, 1,
    )  # fmt: skip


def test_of_another_replicas_it_tells_no_silence(ledger):
    ledger.hear(a_write(an_entry(), term=4))
    ledger.wait(20.0)
    (entry,) = explained(ledger).entries
    assert (entry.silent_for, entry.unhealthy_after, entry.replica, entry.term) == (None, None, 1, 4)


def test_a_lease_is_told_from_others_without_giving_its_id_away(ledger):
    beats(ledger)
    ledger.enter("secret-lease-id", an_entry())
    found = explained(ledger)
    marks = {e.lease for e in found.entries}
    assert len(marks) == 2
    assert not any("secret" in mark for mark in marks)


def test_what_protection_keeps_says_so():
    ledger = Ledger(protected=Protected(share=0.0, floor=0))
    ledger.enter("a", an_entry())
    ledger.wait(30.0)
    (entry,) = explained(ledger).entries
    assert (entry.protected, entry.silent, entry.silent_for) == (True, True, 30.0)
