"""Leases: attaching, detaching, releasing, and what commands tell."""

from __future__ import annotations

import pytest

from registrykit import ORDERS, TICK, Ledger, a_ref, an_entry, key_of
from rollbook.problems import Problem
from rollbook_registry.catalog.leases import http_lease


@pytest.fixture
def ledger():
    return Ledger()


def test_each_attachment_has_a_higher_term_than_any_known_or_presented(ledger):
    assert ledger.attach("a") == (1, False)
    ledger.register("a", an_entry())
    assert ledger.attach("a") == (2, True)
    assert ledger.attach("a", term=9) == (10, True)
    assert ledger.attach("a", term=3) == (11, True)


def test_a_session_that_breaks_keeps_its_entries_and_reattaching_gives_a_full_silence_budget(ledger):
    ledger.enter("a", an_entry())
    ledger.detach("a")
    ledger.wait(14.0)
    assert ledger.only().healthy
    ledger.attach("a", holder="second")
    ledger.wait(15.0 - TICK)
    assert ledger.only().healthy
    ledger.wait(TICK)
    assert not ledger.only().healthy


def test_a_lease_that_nobody_takes_up_again_goes_by_silence(ledger):
    ledger.enter("a", an_entry())
    ledger.detach("a")
    ledger.wait(15.0)
    assert not ledger.only().healthy
    ledger.wait(15.0)
    assert ledger.shown() == {}
    assert ledger.catalog.leases == 0


def test_a_late_detach_by_an_old_session_does_not_detach_the_new_one(ledger):
    ledger.attach("a", holder="first")
    ledger.attach("a", holder="second")
    ledger.detach("a", "first")
    assert ledger.catalog.lease("a").holder == "second"
    ledger.detach("a", "second")
    assert ledger.catalog.lease("a") is None


def test_a_lease_of_a_broken_session_without_entries_is_let_go(ledger):
    ledger.enter("a", an_entry())
    ledger.deregister("a", a_ref())
    assert ledger.catalog.leases == 1
    ledger.detach("a")
    assert ledger.catalog.leases == 0
    assert ledger.attach("a") == (2, False)


def test_a_goodbye_takes_everything_out_at_once(ledger):
    ledger.enter("a", an_entry(), an_entry(81), an_entry(service="invoices"))
    ledger.take()
    ledger.release("a")
    assert ledger.shown() == ledger.shown(key_of("invoices")) == {}
    assert {c.service.name: len(c.drop) for c in ledger.changes()} == {"orders": 2, "invoices": 1}
    with pytest.raises(Problem) as refused:
        ledger.beat("a", term=1)
    assert refused.value.code == "lease_ended"


def test_registering_without_a_lease_is_refused(ledger):
    with pytest.raises(Problem) as refused:
        ledger.register("a", an_entry())
    assert refused.value.code == "lease_ended"
    assert ledger.take() == []


def test_a_lease_of_another_kind_is_not_taken_up(ledger):
    ledger.enter("a", an_entry())
    with pytest.raises(Problem) as refused:
        ledger.attach("a", operator=True, epoch=5)
    assert refused.value.code == "forbidden"
    assert ledger.catalog.lease("a").term == 1
    # Nothing of it was taken: an operator of a lower epoch is still welcome.
    ledger.attach("operator", operator=True, epoch=4)


def test_all_or_nothing(ledger):
    ledger.attach("a")
    ledger.close("gone")
    ledger.take()
    with pytest.raises(Problem) as refused:
        ledger.register("a", an_entry(), an_entry(81, owner="gone"))
    assert refused.value.code == "pod_terminating"
    assert ledger.take() == []
    assert ledger.shown() == {}


def test_a_second_registration_changes_the_first(ledger):
    ledger.enter("a", an_entry())
    ledger.take()
    ledger.register("a", an_entry(weight=3.0))
    assert ledger.only().weight == 3.0
    ledger.take()
    ledger.register("a", an_entry(weight=3.0))
    assert ledger.changes() == []


def test_deregistering_what_is_unknown_is_no_error_and_no_change(ledger):
    ledger.enter("a", an_entry())
    ledger.take()
    ledger.deregister("a", a_ref(99))
    ledger.deregister("b", a_ref())
    assert ledger.take() == []


def test_a_lease_takes_out_only_its_own_entries(ledger):
    ledger.enter("a", an_entry())
    ledger.enter("b", an_entry(81))
    ledger.deregister("b", a_ref(), a_ref(81))
    assert ledger.only().port == 8080


def test_one_command_is_one_change_of_each_service_additions_and_removals_together(ledger):
    ledger.attach("operator", operator=True)
    ledger.register("operator", an_entry(81, owner="u"), an_entry(82, owner="v", service="invoices"))
    ledger.take()
    # The pod's entry moves to a new port as its owner's settings say so, by one frame.
    ledger.register("operator", an_entry(81, owner="u", weight=2.0), an_entry(83, owner="u"))
    (change,) = ledger.changes()
    assert sorted(i.port for i in change.put) == [81, 83]
    ledger.close("u", "v")
    first, second = ledger.changes()
    assert {first.service, second.service} == {ORDERS, key_of("invoices")}
    assert sorted(len(c.drop) for c in (first, second)) == [1, 2]


def test_a_change_that_adds_and_removes_is_told_as_one(ledger):
    ledger.enter("old", an_entry(owner="u"))
    ledger.detach("old")
    ledger.attach("new")
    ledger.take()
    # Another cluster is another key at the same endpoint: the old process' entry is superseded.
    ledger.register("new", an_entry(owner="u", cluster="b"))
    (change,) = ledger.changes()
    assert ([i.cluster for i in change.put], len(change.drop)) == (["b"], 1)
    assert ledger.only().cluster == "b"


def test_a_new_process_of_a_pod_takes_the_place_of_the_one_that_is_gone(ledger):
    ledger.enter("old", an_entry(owner="u"), an_entry(81, owner="u"))
    ledger.detach("old")
    ledger.enter("new", an_entry(owner="u", alive=False))
    assert not ledger.shown()["10.0.0.1:8080:DEFAULT:u"].healthy
    assert len(ledger.shown()) == 2
    ledger.register("new", an_entry(81, owner="u"))
    assert ledger.catalog.lease("old") is None
    assert len(ledger.shown()) == 2


def test_a_process_whose_session_stands_is_not_superseded(ledger):
    ledger.enter("old", an_entry(owner="u"))
    ledger.enter("new", an_entry(owner="u"))
    assert ledger.catalog.lease("old") is not None
    ledger.release("new")
    assert len(ledger.shown()) == 1


def test_deregistering_everywhere_takes_an_instance_out_whoever_entered_it(ledger):
    ledger.enter("a", an_entry(owner="u"))
    ledger.register_http(an_entry(owner="u"))
    ledger.enter("operator", an_entry(owner="u"), operator=True)
    gone = ledger.do(lambda c, now: c.deregister_everywhere(a_ref(owner="u"), operators=False, now=now))
    assert gone
    # The operator's word is left, and is taken only from who may.
    assert len(ledger.shown()) == 1
    assert ledger.catalog.lease(http_lease(a_ref(owner="u"))) is None
    for expected in (True, False):
        gone = ledger.do(lambda c, now: c.deregister_everywhere(a_ref(owner="u"), operators=True, now=now))
        assert gone is expected
    assert ledger.shown() == {}


def test_the_book_shows_an_entrys_instance(ledger):
    ledger.enter("a", an_entry(weight=1.0))
    ledger.enter("b", an_entry(weight=2.0))
    assert ledger.catalog.instance(a_ref(), "a").weight == 1.0
    assert ledger.catalog.instance(a_ref(), "b").weight == 2.0
    assert ledger.catalog.instance(a_ref(81), "a") is None
    assert ledger.catalog.instance(a_ref(service="x"), "a") is None


def test_of_a_pod_the_book_shows_the_instance_as_its_operator_named_it(ledger):
    ledger.enter("operator", an_entry(owner="u", cluster="eu-1"), operator=True)
    ledger.enter("a", an_entry(owner="u"))
    assert ledger.catalog.instance(a_ref(owner="u"), "a").cluster == "eu-1"


# --- operators ------------------------------------------------------------------------------------------


def test_an_operator_of_an_older_epoch_is_refused(ledger):
    ledger.attach("new", operator=True, epoch=2)
    with pytest.raises(Problem) as refused:
        ledger.attach("old", operator=True, epoch=1)
    assert (refused.value.code, refused.value.field, refused.value.accepted) == (
        "epoch_superseded", "epoch", "at least 2",
    )  # fmt: skip
    assert ledger.catalog.lease("old") is None
    ledger.attach("another", operator=True, epoch=2)


def test_an_operator_that_was_replaced_may_not_write_any_more(ledger):
    ledger.enter("old", an_entry(owner="u"), operator=True, epoch=1)
    ledger.attach("new", operator=True, epoch=2)
    with pytest.raises(Problem) as refused:
        ledger.register("old", an_entry(owner="u", weight=9.0))
    assert refused.value.code == "epoch_superseded"
    with pytest.raises(Problem):
        ledger.synced("old")
    with pytest.raises(Problem):
        ledger.catalog.check_epoch(1)
    assert ledger.only().weight == 1.0


def test_synced_ends_what_other_operators_entered_and_not_what_is_its_own(ledger):
    ledger.enter("old", an_entry(owner="u"), an_entry(81, owner="v"), operator=True, epoch=1)
    ledger.enter("new", an_entry(owner="u"), operator=True, epoch=2)
    assert len(ledger.shown()) == 2
    ledger.take()
    ledger.synced("new")
    assert ledger.only().owner == "u"
    assert ledger.catalog.lease("old") is None
    # What both had said did not even flicker.
    (change,) = ledger.changes()
    assert (len(change.put), len(change.drop)) == (0, 1)


def test_synced_ends_an_operator_of_the_same_epoch_that_is_gone(ledger):
    ledger.enter("old", an_entry(81, owner="v"), operator=True, epoch=1)
    ledger.enter("new", an_entry(owner="u"), operator=True, epoch=1)
    ledger.synced("new")
    assert len(ledger.shown()) == 2
    ledger.detach("old")
    ledger.synced("new")
    assert ledger.only().owner == "u"


def test_synced_does_not_touch_what_pods_entered_themselves(ledger):
    ledger.enter("a", an_entry(owner="u"))
    ledger.enter("b", an_entry(81))
    ledger.attach("operator", operator=True)
    ledger.synced("operator")
    assert len(ledger.shown()) == 2
