"""Replication: whose record counts, yielding, orphans, and beginning with what a disk or a peer holds."""

from __future__ import annotations

import msgspec
import pytest

from registrykit import ORDERS, TICK, Disk, Ledger, a_ref, a_write, an_entry
from rollbook.frames import GonePod
from rollbook.problems import Problem
from rollbook_registry.catalog import Happened, PodsMarked, ServiceChanged, Written
from rollbook_registry.catalog.definitions import Defined, Definition
from rollbook_registry.catalog.leases import Kind, http_lease
from rollbook_registry.catalog.records import EntryRecord, PodRecord

HTTP = http_lease(a_ref())


@pytest.fixture
def ledger():
    return Ledger()


def an_end(lease="a", *, reason="released", **fields):
    return a_write(lease=lease, ended=True, whole=False, reason=reason, **fields)


def written(ledger):
    return [e.write for e in ledger.take() if isinstance(e, Written)]


# --- whose record counts --------------------------------------------------------------------------------


def test_what_another_replica_writes_is_shown_and_told_on_to_nobody(ledger):
    assert ledger.hear(a_write(an_entry(weight=3.0))) == "taken"
    assert ledger.only().weight == 3.0
    assert ledger.catalog.lease("a").origin == 1
    assert list(ledger.catalog.own()) == []
    assert written(ledger) == []


def test_a_difference_changes_only_what_it_names(ledger):
    ledger.hear(a_write(an_entry(), an_entry(81)))
    put = [EntryRecord(entry=an_entry(82), order=3, since=3)]
    assert ledger.hear(a_write(n=2, whole=False, put=put, drop=[a_ref()], reason="deregistered")) == "taken"
    assert [i.port for i in ledger.shown().values()] == [81, 82]


def test_a_whole_record_drops_what_it_does_not_name(ledger):
    ledger.hear(a_write(an_entry(), an_entry(81)))
    ledger.hear(a_write(an_entry(81), n=2))
    assert ledger.only().port == 81


def test_a_difference_to_what_is_not_here_asks_for_the_whole_and_changes_nothing(ledger):
    put = [EntryRecord(entry=an_entry(), order=1, since=1)]
    assert ledger.hear(a_write(whole=False, put=put)) == "needs_whole"
    assert ledger.shown() == {}
    assert ledger.catalog.leases == 0


def test_the_higher_term_counts(ledger):
    ledger.hear(a_write(an_entry(weight=3.0), term=3), origin=1)
    assert ledger.hear(a_write(an_entry(weight=2.0), term=2), origin=2) == "older"
    assert ledger.only().weight == 3.0
    assert ledger.hear(a_write(an_entry(weight=4.0), term=4), origin=2) == "taken"
    assert ledger.only().weight == 4.0
    assert ledger.catalog.lease("a").origin == 2


def test_of_equal_terms_the_one_that_a_session_holds_counts(ledger):
    ledger.hear(a_write(an_entry(weight=3.0), attached=False), origin=1)
    assert ledger.hear(a_write(an_entry(weight=4.0)), origin=2) == "taken"
    assert ledger.only().weight == 4.0
    assert ledger.hear(a_write(an_entry(weight=3.0), attached=False), origin=1) == "older"


def test_of_equal_terms_both_held_or_neither_the_lower_ordinal_counts(ledger):
    ledger.hear(a_write(an_entry(weight=3.0)), origin=2)
    assert ledger.hear(a_write(an_entry(weight=4.0)), origin=3) == "older"
    assert ledger.hear(a_write(an_entry(weight=4.0)), origin=1) == "taken"
    assert ledger.only().weight == 4.0


def test_what_its_own_replica_says_is_taken_whatever_the_version(ledger):
    """A replica that lost its disk begins anew, and is the authority all the same."""
    ledger.hear(a_write(an_entry(weight=3.0), term=7, n=70))
    assert ledger.hear(a_write(an_entry(weight=4.0), term=1, n=1)) == "taken"
    assert ledger.only().weight == 4.0


# --- yielding -------------------------------------------------------------------------------------------


def test_an_own_lease_whose_client_went_on_elsewhere_is_yielded_without_a_gap(ledger):
    ledger.enter("a", an_entry())
    ledger.take()
    assert ledger.hear(a_write(an_entry(), term=2)) == "taken"
    events = ledger.take()
    assert not any(isinstance(e, ServiceChanged) for e in events), "nobody sees anything of it"
    (write,) = [e.write for e in events if isinstance(e, Written)]
    assert (write.ended, write.yielded, write.term, write.successor) == (True, True, 1, 2)
    lease = ledger.catalog.lease("a")
    assert (lease.origin, lease.term, lease.holder) == (1, 2, None)
    # And its silence is not this replica's to judge any more.
    ledger.wait(60.0)
    assert ledger.only().healthy


def test_the_former_sessions_beats_are_told_that_its_lease_has_ended_here(ledger):
    ledger.enter("a", an_entry())
    ledger.hear(a_write(an_entry(), term=2))
    with pytest.raises(Problem) as refused:
        ledger.beat("a", term=1)
    assert refused.value.code == "lease_ended"
    ledger.detach("a")
    assert ledger.only().healthy


def test_an_own_lease_is_not_yielded_to_an_older_record(ledger):
    ledger.attach("a", term=4)
    ledger.register("a", an_entry(weight=2.0))
    assert ledger.hear(a_write(an_entry(), term=4)) == "older"
    assert ledger.catalog.lease("a").origin == 0
    assert ledger.only().weight == 2.0


def test_a_third_replica_keeps_what_was_yielded_until_the_other_one_speaks(ledger):
    ledger.hear(a_write(an_entry()), origin=1)
    ledger.take()
    ledger.hear(an_end(reason="yielded", n=2, successor=2), origin=1)
    assert ledger.only().healthy
    assert ledger.catalog.lease("a").orphan
    ledger.hear(a_write(an_entry(), term=2), origin=2)
    assert ledger.only().healthy
    assert not ledger.catalog.lease("a").orphan
    assert ledger.changes() == []


def test_what_was_yielded_to_somebody_who_has_ended_it_since_does_not_stay(ledger):
    ledger.hear(a_write(an_entry(), term=2), origin=2)
    ledger.hear(an_end(term=2, n=2), origin=2)
    # The former owner's word was under way all that time.
    ledger.hear(a_write(an_entry(), term=1), origin=1)
    ledger.hear(an_end(term=1, n=2, reason="yielded", successor=2), origin=1)
    assert ledger.shown() == {}
    assert ledger.catalog.leases == 0


def test_what_holds_nothing_is_not_kept_for_whoever_it_was_yielded_to(ledger):
    ledger.close("u")
    ledger.hear(a_write(an_entry(owner="u")))
    ledger.hear(an_end(n=2, reason="yielded", successor=2))
    assert ledger.catalog.leases == 0


def test_so_it_is_where_the_lease_was_never_known(ledger):
    ledger.hear(an_end(term=2, n=2), origin=2)
    ledger.hear(a_write(an_entry(), term=1), origin=1)
    ledger.hear(an_end(term=1, n=2, reason="yielded", successor=2), origin=1)
    assert ledger.catalog.leases == 0


def test_a_late_word_about_an_older_life_does_not_lower_the_term_that_is_remembered(ledger):
    ledger.hear(an_end(term=5), origin=1)
    ledger.hear(a_write(an_entry(), term=2), origin=2)
    ledger.hear(an_end(term=2, n=2), origin=2)
    assert ledger.attach("a").term == 6


def test_another_replicas_end_takes_its_entries_out(ledger):
    ledger.hear(a_write(an_entry()))
    ledger.hear(an_end(n=2, reason="expired"))
    assert ledger.shown() == {}
    assert "expired" in ledger.reasons()


def test_an_end_by_who_does_not_own_it_and_has_not_taken_it_up_does_nothing(ledger):
    ledger.enter("a", an_entry())
    ledger.hear(an_end(term=1, reason="released"), origin=1)
    ledger.hear(an_end(term=9, reason="yielded"), origin=1)
    assert ledger.only().healthy


def test_a_reason_of_a_newer_version_is_understood_as_an_end(ledger):
    ledger.hear(a_write(an_entry()))
    ledger.hear(an_end(n=2, reason="something_new"))
    assert ledger.shown() == {}


# --- orphans --------------------------------------------------------------------------------------------


def test_a_lost_replicas_leases_stay_as_last_known_however_long_they_are_silent(ledger):
    ledger.hear(a_write(an_entry()))
    ledger.hear(a_write(an_entry(81), lease="b", order=5, put=[
        EntryRecord(entry=an_entry(81), order=5, since=5, down=True),
    ]))  # fmt: skip
    ledger.orphan()
    ledger.take()
    ledger.wait(120.0)
    assert {i.port: i.healthy for i in ledger.shown().values()} == {8080: True, 81: False}
    assert ledger.changes() == []


def test_a_client_that_attaches_here_takes_its_orphan_up_with_all_it_holds(ledger):
    ledger.hear(a_write(an_entry(), an_entry(81), term=3))
    ledger.orphan()
    ledger.take()
    assert ledger.attach("a", term=3) == (4, True)
    assert ledger.catalog.lease("a").origin == 0
    (write,) = written(ledger)
    assert (write.whole, write.term, len(write.put), write.attached) == (True, 4, 2, True)
    ledger.wait(15.0 - TICK)
    assert all(i.healthy for i in ledger.shown().values())
    ledger.wait(TICK)
    assert not any(i.healthy for i in ledger.shown().values())


def test_a_plain_http_clients_beat_takes_its_orphan_up(ledger):
    ledger.hear(a_write(an_entry(), lease=HTTP, kind=Kind.HTTP, attached=False, term=2))
    ledger.orphan()
    ledger.beat_http(a_ref(), term=2)
    lease = ledger.catalog.lease(HTTP)
    assert (lease.origin, lease.term, lease.orphan) == (0, 3, False)
    ledger.wait(30.0)
    assert ledger.shown() == {}


def test_a_live_lease_with_the_same_instance_hides_the_orphan(ledger):
    ledger.hear(a_write(an_entry(weight=5.0)))
    ledger.enter("b", an_entry())
    assert len(ledger.shown()) == 2
    ledger.orphan()
    assert ledger.only().weight == 1.0
    ledger.adopted()
    assert len(ledger.shown()) == 2


def test_so_it_does_for_a_pod_whose_orphan_was_newer(ledger):
    ledger.enter("b", an_entry(owner="u"))
    ledger.hear(a_write(an_entry(owner="u"), order=9, put=[
        EntryRecord(entry=an_entry(owner="u"), order=9, since=9, down=True),
    ]))  # fmt: skip
    assert not ledger.only().healthy
    ledger.orphan()
    assert ledger.only().healthy


def test_orphans_of_one_replica_are_not_anothers(ledger):
    ledger.hear(a_write(an_entry()), origin=1)
    ledger.hear(a_write(an_entry(81), lease="b"), origin=2)
    ledger.orphan(1)
    assert ledger.catalog.lease("a").orphan
    assert not ledger.catalog.lease("b").orphan
    ledger.orphan(0)
    assert not ledger.catalog.lease("b").orphan


def test_a_returning_owners_word_replaces_its_orphan(ledger):
    ledger.hear(a_write(an_entry(), term=3, n=9))
    ledger.orphan()
    assert ledger.hear(a_write(an_entry(weight=2.0), term=3, n=10)) == "taken"
    assert not ledger.catalog.lease("a").orphan
    assert ledger.only().weight == 2.0


def test_an_equal_term_from_elsewhere_replaces_an_orphan_too(ledger):
    ledger.hear(a_write(an_entry(), term=3), origin=1)
    ledger.orphan(1)
    assert ledger.hear(a_write(an_entry(weight=2.0), term=3, attached=False), origin=2) == "taken"


def test_forgetting_hides_a_lost_replicas_leases_and_remembers_no_end(ledger):
    ledger.hear(a_write(an_entry()))
    ledger.hear(a_write(an_entry(81), lease="http/10.0.0.1:81", kind=Kind.HTTP, attached=False))
    ledger.orphan()
    ledger.take()
    ledger.forget("a", "http/10.0.0.1:81")
    assert ledger.shown() == {}
    assert ledger.reasons().count("hidden") == 4
    assert ledger.catalog.ended("a") is None
    # A beat is told that it is unknown, and not that it has ended: it registers at once.
    assert not ledger.catalog.has_ended("http/10.0.0.1:81", a_ref(81))
    assert ledger.hear(a_write(an_entry())) == "taken"


def test_forgetting_touches_only_what_that_replica_owns(ledger):
    ledger.enter("a", an_entry())
    ledger.hear(a_write(an_entry(81), lease="b"), origin=2)
    ledger.forget("a", "b", "unknown", origin=1)
    ledger.forget("a", origin=0)
    assert len(ledger.shown()) == 2


def test_an_instance_that_is_taken_out_by_hand_is_missed_by_the_others_too_though_its_replica_is_lost(ledger):
    ledger.hear(a_write(an_entry(), an_entry(81), term=2))
    assert not ledger.delete(a_ref()), "what another replica owns, only that one can take out"
    ledger.orphan()
    ledger.take()
    assert ledger.delete(a_ref())
    assert ledger.only().port == 81
    (write,) = written(ledger)
    assert (write.term, write.whole, [r.entry.port for r in write.put]) == (3, True, [81])


def test_what_another_replica_took_up_and_ended_in_one_go_is_over_at_its_owner_too(ledger):
    """A plain HTTP client's instance may be taken out at any replica."""
    owner = Ledger(ordinal=1)
    owner.register_http(an_entry())
    ledger.hear(owner.catalog.record(HTTP), origin=1)
    ledger.take()
    assert ledger.delete(a_ref())
    (write,) = written(ledger)
    assert (write.ended, write.term) == (True, 2)
    owner.hear(write, origin=0)
    assert owner.shown() == {}
    third = Ledger(ordinal=2)
    third.hear(a_write(an_entry(), lease=HTTP, kind=Kind.HTTP, attached=False), origin=1)
    third.hear(write, origin=0)
    assert third.shown() == {}


def test_an_end_of_an_older_life_does_not_end_what_was_registered_since(ledger):
    ledger.register_http(an_entry(), term=5)
    ledger.hear(an_end(HTTP, kind=Kind.HTTP, term=6), origin=1)
    assert ledger.only().healthy


def test_an_earlier_process_here_gives_way_to_a_newer_one_at_another_replica(ledger):
    ledger.enter("old", an_entry(owner="u"))
    ledger.detach("old")
    ledger.take()
    ledger.hear(a_write(an_entry(owner="u"), lease="new", order=9))
    assert ledger.catalog.lease("old") is None
    (write,) = written(ledger)
    assert (write.ended, write.reason) == (True, "superseded")
    assert ledger.only().healthy


# --- pods -----------------------------------------------------------------------------------------------


def test_pods_that_a_peer_knows_to_be_closed_are_closed_here_and_told_once(ledger):
    ledger.hear(a_write(an_entry(owner="u")))
    ledger.mark(PodRecord(uid="u"))
    assert ledger.shown() == {}
    assert [e.pods[0].uid for e in ledger.take() if isinstance(e, PodsMarked)] == ["u"]
    ledger.mark(PodRecord(uid="u", age=3.0))
    assert [e for e in ledger.take() if isinstance(e, PodsMarked)] == []


def test_entries_of_closed_and_fenced_pods_are_left_out_of_what_comes(ledger):
    ledger.close("u")
    ledger.fence(GonePod(uid="v"))
    ledger.hear(a_write(an_entry(owner="u"), an_entry(81, owner="v"), an_entry(82)))
    assert ledger.only().port == 82
    ledger.hear(a_write(n=2, whole=False, put=[EntryRecord(entry=an_entry(owner="u"), order=5, since=5)]))
    assert ledger.only().port == 82


def test_an_address_that_was_fenced_long_ago_may_be_anybodys_today(ledger):
    ledger.enter("a", an_entry())
    ledger.mark(PodRecord(uid="u", fenced=True, age=31.0, ips=["10.0.0.1"]))
    assert ledger.only().healthy
    ledger.mark(PodRecord(uid="v", fenced=True, age=1.0, ips=["10.0.0.1"]))
    assert ledger.shown() == {}


def test_a_fenced_address_takes_no_persistent_instances_verdict_with_it(ledger):
    entry = an_entry(ephemeral=False)
    ledger.rule(Defined(entry.ref, Definition(entry=entry)))
    ledger.attach("checker/0", kind=Kind.CHECKER)
    ledger.register("checker/0", an_entry(ephemeral=False, alive=False))
    ledger.fence(GonePod(uid="u", ips=["10.0.0.1"]))
    assert not ledger.only().healthy


# --- restore --------------------------------------------------------------------------------------------


def restarted(ledger):
    new = Ledger(ordinal=ledger.catalog.ordinal, now=ledger.now)
    new.restore(ledger.disk)
    return new


def test_after_a_restart_everybody_is_there_and_has_a_full_grace_period(ledger):
    ledger.enter("a", an_entry())
    ledger.register_http(an_entry(81))
    ledger.wait(14.0)
    new = restarted(ledger)
    assert new.book() == ledger.book()
    assert new.catalog.lease("a").holder is None
    new.wait(15.0 - TICK)
    assert all(i.healthy for i in new.shown().values())
    new.wait(TICK)
    assert not any(i.healthy for i in new.shown().values())
    new.wait(15.0)
    assert new.shown() == {}


def test_who_was_silent_stays_so_and_has_time_to_come_back(ledger):
    ledger.enter("a", an_entry())
    ledger.wait(29.0)
    new = restarted(ledger)
    assert not new.only().healthy
    new.wait(29.0)
    new.beat("a")
    assert new.only().healthy


def test_terms_go_on_after_a_restart(ledger):
    ledger.attach("a", term=6)
    ledger.register("a", an_entry())
    new = restarted(ledger)
    assert new.attach("a") == (8, True)


def test_order_goes_on_after_a_restart_so_that_the_newest_publisher_counts(ledger):
    for _ in range(5):
        ledger.enter("old", an_entry(owner="u"))
    new = restarted(ledger)
    new.attach("old")
    new.enter("new", an_entry(owner="u", alive=False))
    assert not new.only().healthy


def test_what_is_closed_or_fenced_does_not_come_back(ledger):
    ledger.enter("a", an_entry(owner="u"), an_entry(81, owner="v"), an_entry(82))
    disk = Disk()
    disk.leases = dict(ledger.disk.leases)  # from before the pods ended
    disk.mark((PodRecord(uid="u"), PodRecord(uid="v", fenced=True)), 0.0)
    new = Ledger()
    new.restore(disk)
    assert new.only().port == 82
    with pytest.raises(Problem) as refused:
        new.enter("a", an_entry(owner="v"))
    assert refused.value.code == "pod_gone"
    assert {p.uid for p in new.catalog.pod_records(new.now)} == {"u", "v"}


def test_of_two_processes_at_one_endpoint_a_restart_ends_neither(ledger):
    """Which of them the disk has first says nothing, and nobody is attached yet."""
    ledger.enter("old", an_entry(owner="u"))
    ledger.enter("new", an_entry(owner="u", weight=2.0))
    new = restarted(ledger)
    assert (new.catalog.leases, new.only().weight) == (2, 2.0)


def test_what_others_owned_comes_back_as_orphans_until_they_speak(ledger):
    disk = Disk()
    disk.write(1, a_write(an_entry()))
    ledger.restore(disk)
    assert ledger.only().healthy
    assert ledger.catalog.lease("a").orphan
    assert list(ledger.catalog.own()) == []
    ledger.adopted(1)
    assert not ledger.catalog.lease("a").orphan


def test_what_is_here_and_newer_is_not_replaced_by_what_the_disk_holds(ledger):
    disk = Disk()
    disk.write(0, a_write(an_entry(weight=9.0), term=1, n=50))
    ledger.attach("a", term=1)
    ledger.register("a", an_entry())
    ledger.restore(disk)
    assert ledger.only().weight == 1.0
    assert ledger.catalog.lease("a").holder is not None


def test_what_is_here_and_older_is_replaced(ledger):
    ledger.enter("a", an_entry(), an_entry(81))
    disk = Disk()
    disk.write(0, a_write(an_entry(weight=9.0), term=5))
    ledger.restore(disk)
    assert ledger.only().weight == 9.0
    assert ledger.catalog.lease("a").term == 5


def test_what_comes_back_is_written_again_whole(ledger):
    ledger.enter("a", an_entry())
    new = restarted(ledger)
    (write,) = written(new)
    assert write.whole
    assert write.n > ledger.catalog.lease("a").n


def test_a_lease_that_held_nothing_does_not_come_back(ledger):
    ledger.attach("a")
    new = restarted(ledger)
    assert new.catalog.leases == 0
    assert [w.ended for w in written(new)] == [True]


# --- operators ------------------------------------------------------------------------------------------


def an_operators(*entries, lease="op", epoch=1, synced=False, **fields):
    put = [EntryRecord(entry=e, order=i + 1, since=i + 1, epoch=epoch) for i, e in enumerate(entries)]
    return a_write(lease=lease, kind=Kind.OPERATOR, epoch=epoch, synced=synced, put=put, **fields)


def test_another_replicas_operator_whose_list_is_complete_ends_older_ones_here(ledger):
    ledger.enter("old", an_entry(owner="u"), an_entry(81, owner="v"), operator=True, epoch=1)
    ledger.hear(an_operators(an_entry(owner="u"), epoch=2))
    assert len(ledger.shown()) == 2
    ledger.hear(an_operators(an_entry(owner="u"), epoch=2, n=2, synced=True, whole=False))
    assert ledger.only().owner == "u"
    assert ledger.catalog.lease("old") is None


def test_an_older_operators_late_word_is_not_taken(ledger):
    ledger.hear(an_operators(an_entry(owner="u"), epoch=2, synced=True))
    assert ledger.hear(an_operators(an_entry(81, owner="v"), lease="old", epoch=1), origin=2) == "superseded"
    assert ledger.only().owner == "u"


def test_nor_after_a_restart(ledger):
    ledger.enter("new", an_entry(owner="u"), operator=True, epoch=2)
    ledger.synced("new")
    new = restarted(ledger)
    assert new.hear(an_operators(an_entry(81, owner="v"), lease="old", epoch=1)) == "superseded"
    with pytest.raises(Problem):
        new.attach("old", operator=True, epoch=1)


def test_two_operators_of_one_epoch_do_not_strike_each_other_out(ledger):
    """Each at the replica that hears of the other: everything that only operators speak for would be gone."""
    ledger.enter("new", an_entry(owner="u"), operator=True, epoch=1)
    ledger.synced("new")
    assert ledger.hear(an_operators(an_entry(owner="u"), lease="old", synced=True)) == "taken"
    assert ledger.catalog.lease("new") is not None
    ledger.hear(an_end("old", n=2, kind=Kind.OPERATOR, reason="superseded"))
    assert ledger.only().owner == "u"


def test_of_its_own_epoch_a_complete_list_ends_what_nobody_holds_here(ledger):
    ledger.enter("old", an_entry(81, owner="v"), operator=True, epoch=1)
    ledger.detach("old")
    ledger.hear(an_operators(an_entry(owner="u"), lease="new", synced=True))
    assert ledger.only().owner == "u"


def test_a_list_that_was_complete_under_another_epoch_need_not_be_any_more(ledger):
    ledger.enter("op", an_entry(owner="u"), operator=True, epoch=1)
    ledger.synced("op")
    ledger.attach("op", operator=True, epoch=2)
    assert not ledger.catalog.record("op").synced
    ledger.synced("op")
    assert ledger.catalog.record("op").synced


def test_what_an_operator_said_under_an_older_epoch_stays_older_at_its_followers(ledger):
    ledger.enter("first", an_entry(owner="u", weight=1.0), operator=True, epoch=1)
    ledger.enter("second", an_entry(owner="u", weight=2.0), operator=True, epoch=2)
    ledger.attach("first", operator=True, epoch=3)
    follower = Ledger(ordinal=1)
    for id_ in ledger.catalog.own():
        follower.hear(ledger.catalog.record(id_), origin=0)
    assert follower.only().weight == ledger.only().weight == 2.0


def test_of_operators_at_two_replicas_the_higher_epoch_counts_whatever_the_order(ledger):
    """Cut off from each other, the older one's replica may have counted further."""
    old = an_operators(an_entry(owner="u", weight=1.0), lease="old", epoch=1)
    old.put[0] = msgspec.structs.replace(old.put[0], order=9)
    new = an_operators(an_entry(owner="u", weight=2.0), lease="new", epoch=2)
    ledger.hear(old, origin=1)
    ledger.hear(new, origin=2)
    assert ledger.only().weight == 2.0
    third = Ledger(ordinal=3)
    third.hear(ledger.catalog.record("old"), origin=1)
    third.hear(ledger.catalog.record("new"), origin=2)
    assert third.only().weight == 2.0


# --- what is told ---------------------------------------------------------------------------------------


def test_a_command_writes_once_and_a_beat_that_changes_nothing_not_at_all(ledger):
    ledger.enter("a", an_entry(), an_entry(81))
    assert len(written(ledger)) == 2
    ledger.beat("a")
    assert written(ledger) == []
    ledger.beat("a", down=[a_ref()])
    (write,) = written(ledger)
    assert [(r.entry.port, r.down) for r in write.put] == [(8080, True)]
    ledger.wait(15.0)
    (write,) = written(ledger)
    assert [(r.entry.port, r.silent) for r in write.put] == [(8080, True), (81, True)]


def test_one_look_may_find_one_entry_silent_and_another_one_gone(ledger):
    ledger.enter(
        "a",
        an_entry(metadata={"preserved.heart.beat.timeout": "4000"}),
        an_entry(81, metadata={"preserved.ip.delete.timeout": "4000"}),
    )
    ledger.take()
    ledger.wait(4.0)
    (write,) = written(ledger)
    assert ([r.entry.port for r in write.put], [ref.port for ref in write.drop]) == ([8080], [81])
    assert list(ledger.disk.leases["a"][1].put) == list(ledger.catalog.record("a").put)


def test_a_followed_recovery_is_told_as_one(ledger):
    ledger.hear(a_write(put=[EntryRecord(entry=an_entry(), order=1, since=1, silent=True)]))
    ledger.take()
    ledger.hear(a_write(an_entry(), n=2))
    assert [e.reason.value for e in ledger.take() if isinstance(e, Happened)] == ["recovered"]
    assert ledger.only(ORDERS).healthy
