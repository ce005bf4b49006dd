"""Two truths: where Kubernetes and the book do not agree, when that shows, and when it is over."""

from __future__ import annotations

import pytest

from registrykit import Ledger, a_write, an_entry
from rollbook.frames import GonePod
from rollbook.problems import Problem
from rollbook_registry.catalog.disagreements import Disagreement, count, disagreements

STUCK_AFTER = 300.0


@pytest.fixture
def ledger():
    return Ledger()


def found(ledger):
    listed = list(disagreements(ledger.catalog, ledger.now, stuck_after=STUCK_AFTER))
    counts = count(ledger.catalog, ledger.now, stuck_after=STUCK_AFTER)
    assert counts == {k: sum(d.kind == k.value for d in listed) for k in Disagreement}
    return {(d.kind, d.owner): d for d in listed}


def kinds(ledger):
    return sorted(found(ledger))


def managed(ledger, **fields):
    ledger.enter("operator", an_entry(owner="u", ready=True, beats_required=True, **fields), operator=True)


def test_a_pod_that_kubernetes_calls_ready_and_whose_sidecar_never_beat_is_silent(ledger):
    managed(ledger)
    assert kinds(ledger) == [], "a sidecar that has just started is no disagreement"
    ledger.wait(15.0, "operator")
    (disagreeing,) = found(ledger).values()
    assert (disagreeing.kind, disagreeing.owner, disagreeing.seconds) == ("silent", "u", 15.0)
    assert (disagreeing.services, disagreeing.addresses) == (["public/DEFAULT_GROUP@@orders"], ["10.0.0.1"])
    assert disagreeing.because == "Kubernetes calls it ready, and nobody beats for it"


def test_so_is_one_whose_sidecar_has_stopped_and_its_first_beat_ends_it(ledger):
    managed(ledger)
    ledger.enter("a", an_entry(owner="u"))
    ledger.wait(15.0, "operator")
    assert kinds(ledger) == []
    ledger.wait(14.0, "operator")
    assert kinds(ledger) == []
    ledger.wait(1.0)
    assert kinds(ledger) == [("silent", "u")], "counted from when it fell silent, its removal included"
    ledger.enter("b", an_entry(owner="u"))
    assert kinds(ledger) == []


def test_beats_that_come_back_in_time_begin_it_anew(ledger):
    managed(ledger)
    ledger.wait(14.0, "operator")
    ledger.enter("a", an_entry(owner="u"))
    ledger.release("a")
    ledger.wait(14.0, "operator")
    assert kinds(ledger) == []


def test_what_kubernetes_does_not_call_ready_is_no_disagreement(ledger):
    ledger.enter("operator", an_entry(owner="u", ready=False, beats_required=True), operator=True)
    ledger.wait(60.0, "operator")
    assert kinds(ledger) == []
    managed(ledger)
    ledger.wait(15.0, "operator")
    assert kinds(ledger) == [("silent", "u")]
    ledger.register("operator", an_entry(owner="u", ready=False, beats_required=True))
    assert kinds(ledger) == []


def test_nor_is_a_pod_without_a_sidecar(ledger):
    ledger.enter("operator", an_entry(owner="u", ready=True), operator=True)
    ledger.wait(60.0, "operator")
    assert kinds(ledger) == []


def test_a_silent_pod_that_ends_is_silent_no_more(ledger):
    managed(ledger)
    ledger.wait(15.0, "operator")
    ledger.close("u")
    assert kinds(ledger) == []


def test_it_is_known_of_what_another_replica_hears_too(ledger):
    managed(ledger)
    ledger.hear(a_write(an_entry(owner="u"), lease="a"))
    ledger.wait(30.0, "operator")
    assert kinds(ledger) == []
    ledger.hear(a_write(lease="a", ended=True, whole=False, reason="expired", n=2))
    ledger.wait(15.0, "operator")
    assert kinds(ledger) == [("silent", "u")]


def speak(ledger, lease="a"):
    with pytest.raises(Problem) as refused:
        ledger.enter(lease, an_entry(owner="u"))
    return refused.value.code


def test_a_pod_that_is_confirmed_gone_and_speaks_is_a_zombie_while_it_does(ledger):
    ledger.fence(GonePod(uid="u"))
    assert kinds(ledger) == []
    assert speak(ledger) == "pod_gone"
    ledger.wait(4.0)
    (disagreeing,) = found(ledger).values()
    assert (disagreeing.kind, disagreeing.owner, disagreeing.seconds) == ("zombie", "u", 4.0)
    assert disagreeing.because == "it is confirmed gone, and somebody still speaks in its name"
    speak(ledger)
    assert found(ledger)["zombie", "u"].seconds == 0.0
    ledger.wait(31.0)
    assert kinds(ledger) == []


def test_its_beats_make_it_one(ledger):
    ledger.enter("a", an_entry(owner="u"))
    ledger.fence(GonePod(uid="u"))
    with pytest.raises(Problem):
        ledger.beat("a")
    assert kinds(ledger) == [("zombie", "u")]


def test_a_pod_that_terminates_for_long_is_stuck_until_it_is_confirmed_gone(ledger):
    ledger.close("u")
    ledger.wait(STUCK_AFTER - 1)
    assert kinds(ledger) == []
    ledger.wait(1.0)
    (disagreeing,) = found(ledger).values()
    assert (disagreeing.kind, disagreeing.seconds) == ("stuck", STUCK_AFTER)
    assert disagreeing.because == "it has been terminating, and is not confirmed gone"
    ledger.fence(GonePod(uid="u"))
    assert kinds(ledger) == []


def test_a_terminating_pod_that_speaks_is_no_zombie(ledger):
    ledger.close("u")
    assert speak(ledger) == "pod_terminating"
    assert kinds(ledger) == []


def test_one_pod_may_be_in_each_truth_by_itself(ledger):
    managed(ledger)
    ledger.fence(GonePod(uid="v"))
    ledger.close("w")
    for _ in range(20):
        ledger.wait(15.0, "operator")
    with pytest.raises(Problem):
        ledger.enter("z", an_entry(owner="v"))
    assert kinds(ledger) == [("silent", "u"), ("stuck", "w"), ("zombie", "v")]
