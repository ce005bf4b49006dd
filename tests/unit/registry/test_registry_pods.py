"""Closing and fencing: what speaks in the name of a pod that is going or gone."""

from __future__ import annotations

import pytest

from registrykit import Ledger, a_ref, an_entry
from rollbook.frames import GonePod
from rollbook.problems import Problem
from rollbook_registry.catalog.catalog import PODS_SWEPT
from rollbook_registry.catalog.pods import FENCE_KEPT


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture(params=["close", "fence"])
def end(request, ledger):
    """End a pod, one way or the other; returns how, and the code that follows."""

    def end(uid):
        if request.param == "close":
            ledger.close(uid)
            return "pod_terminating"
        ledger.fence(GonePod(uid=uid, ips=["10.0.0.1"]))
        return "pod_gone"

    return end


def test_its_entries_go_at_once_whoever_entered_them(ledger, end):
    ledger.enter("a", an_entry(owner="u"))
    ledger.register_http(an_entry(81, owner="u"))
    ledger.enter("operator", an_entry(owner="u"), operator=True)
    ledger.enter("b", an_entry(owner="v", ip="10.0.0.2"))
    ledger.take()
    end("u")
    assert ledger.only().owner == "v"
    (change,) = ledger.changes()
    # The operator had not named port 81, so that the book never showed it.
    assert list(change.drop) == ["10.0.0.1:8080:DEFAULT:u"]


def test_nothing_is_taken_in_its_name_afterwards(ledger, end):
    ledger.enter("a", an_entry(owner="u"))
    ledger.register_http(an_entry(81, owner="u"))
    code = end("u")
    ledger.take()
    attempts = [
        lambda: ledger.beat("a"),
        lambda: ledger.beat("a", term=0),
        lambda: ledger.register("a", an_entry(owner="u")),
        lambda: ledger.register_http(an_entry(owner="u")),
        lambda: ledger.beat_http(a_ref(81, owner="u")),
        lambda: ledger.beat_http(a_ref(owner="u")),
    ]
    for attempt in attempts:
        with pytest.raises(Problem) as refused:
            attempt()
        assert (refused.value.code, refused.value.status) == (code, 410)
    assert ledger.shown() == {}
    assert ledger.changes() == []


def test_late_beats_of_a_lease_that_has_ended_are_told_that_the_pod_is_gone(ledger, end):
    ledger.enter("a", an_entry(owner="u"))
    ledger.detach("a")
    code = end("u")
    assert ledger.catalog.lease("a") is None
    with pytest.raises(Problem) as refused:
        ledger.beat("a", term=1)
    assert refused.value.code == code


def test_a_pod_that_nobody_knew_can_be_ended_too(ledger, end):
    code = end("u")
    with pytest.raises(Problem) as refused:
        ledger.register_http(an_entry(owner="u"))
    assert refused.value.code == code


def test_ending_a_pod_twice_changes_nothing_more(ledger, end):
    ledger.enter("a", an_entry(owner="u"))
    end("u")
    ledger.take()
    end("u")
    assert ledger.take() == []


def test_other_pods_are_not_concerned(ledger, end):
    ledger.enter("a", an_entry(owner="u"))
    end("v")
    ledger.beat("a")
    assert ledger.only().healthy


def test_a_closed_pod_is_fenced_later_and_not_closed_again(ledger):
    ledger.close("u")
    ledger.fence(GonePod(uid="u"))
    ledger.close("u")
    assert (ledger.catalog.pods.closed, ledger.catalog.pods.fenced) == (0, 1)


def test_what_plain_sdks_registered_at_the_address_of_a_pod_that_is_gone_goes_too(ledger):
    ledger.enter("a", an_entry(owner="u"))
    ledger.enter("sdk", an_entry(81), an_entry(82, service="invoices"))
    ledger.register_http(an_entry(83))
    ledger.enter("elsewhere", an_entry(84, ip="10.0.0.2"))
    ledger.fence(GonePod(uid="u", ips=["10.0.0.1"]))
    assert ledger.only().port == 84
    assert "address_fenced" in ledger.reasons()
    # It is no fence for the address: another pod may have it next.
    ledger.register("sdk", an_entry(81))
    assert len(ledger.shown()) == 2


def test_unless_another_pod_has_the_address_by_then(ledger):
    ledger.enter("old", an_entry(owner="u"))
    ledger.enter("new", an_entry(owner="v"))
    ledger.enter("sdk", an_entry(81))
    ledger.fence(GonePod(uid="u", ips=["10.0.0.1"]))
    assert sorted(i.owner for i in ledger.shown().values()) == ["", "v"]


def test_a_pod_of_the_host_network_takes_nobody_with_it(ledger):
    ledger.enter("a", an_entry(owner="u"))
    ledger.enter("sdk", an_entry(81))
    ledger.fence(GonePod(uid="u"))
    assert ledger.only().port == 81


def test_closing_does_not_touch_the_address(ledger):
    ledger.enter("a", an_entry(owner="u"))
    ledger.enter("sdk", an_entry(81))
    ledger.close("u")
    assert ledger.only().port == 81


def test_a_fence_outlives_every_token(ledger):
    ledger.fence(GonePod(uid="u"))
    ledger.close("v")
    ledger.now += FENCE_KEPT - 1
    ledger.do(lambda c, now: c.sweep(now))
    with pytest.raises(Problem):
        ledger.register_http(an_entry(owner="u"))
    ledger.now += PODS_SWEPT
    ledger.do(lambda c, now: c.sweep(now))
    assert (ledger.catalog.pods.closed, ledger.catalog.pods.fenced) == (0, 0)
