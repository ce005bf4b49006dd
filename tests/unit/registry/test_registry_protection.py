"""Protection: what Eureka's users suffered from does not happen here."""

from __future__ import annotations

import random

import pytest

from registrykit import TICK, Ledger, a_ref, a_write, an_entry
from rollbook.frames import GonePod
from rollbook_registry.catalog import Reason
from rollbook_registry.expiry import Protected, Protection

WINDOW = 60.0


def crowd(count, *, floor=2, share=0.1, rng=1, lease="lease-{}", **fields):
    """A book of many, one instance each."""
    ledger = Ledger(protected=Protected(share=share, floor=floor, window=WINDOW))
    ledger.protection._rng = random.Random(rng)
    for n in range(count):
        ledger.enter(lease.format(n), an_entry(n + 1, **fields))
    ledger.take()
    return ledger


def there(ledger):
    return {int(i.port) for i in ledger.shown().values()}


def expired(ledger):
    return ledger.reasons().count("expired") // 2  # of the entry, and of its lease


# --- bounded --------------------------------------------------------------------------------------------


def test_when_all_fall_silent_at_once_a_set_share_goes_in_a_window():
    ledger = crowd(100)
    ledger.wait(30.0)
    assert len(there(ledger)) == 90
    assert expired(ledger) == 10
    ledger.wait(WINDOW - TICK)
    assert len(there(ledger)) == 90
    assert ledger.protection.active
    assert ledger.protection.kept == 90


def test_who_is_kept_is_shown_as_what_it_is_and_the_reason_is_told_once():
    ledger = crowd(100)
    ledger.wait(30.0)
    assert not any(i.healthy for i in ledger.shown().values())
    assert ledger.reasons().count("protected") == 90
    ledger.wait(WINDOW - TICK)
    assert ledger.take() == []


def test_few_that_fall_silent_go_at_once():
    ledger = crowd(100)
    ledger.wait(30.0, *(f"lease-{n}" for n in range(95)))
    assert len(there(ledger)) == 95
    assert not ledger.protection.active


def test_who_is_silent_later_in_the_window_has_what_is_left_of_it():
    ledger = crowd(100)
    ledger.wait(10.0)
    for n in range(6, 100):
        ledger.beat(f"lease-{n}")
    ledger.wait(20.0)
    assert len(there(ledger)) == 94
    ledger.wait(10.0)
    assert len(there(ledger)) == 90
    assert ledger.protection.kept == 90


# --- random, with the rng passed in ---------------------------------------------------------------------


def test_chance_chooses_who_goes_and_the_same_chance_the_same():
    chosen = []
    for seed in (1, 1, 2):
        ledger = crowd(100, rng=seed)
        ledger.wait(30.0)
        chosen.append(frozenset(range(1, 101)) - there(ledger))
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] != frozenset(range(1, 11)), "not those that were registered first"


def test_no_service_loses_all_it_has_first():
    ledger = Ledger(protected=Protected(share=0.2, floor=1, window=WINDOW))
    for n in range(100):
        ledger.enter(f"lease-{n}", an_entry(n + 1, service=f"service-{n // 10}"))
    ledger.wait(30.0)
    left = [len(s.instances) for s in ledger.catalog.services]
    assert sum(left) == 80
    assert min(left) > 0


# --- the base: confirmed ends leave it ------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", ["goodbye", "deregistered", "deleted", "closed", "fenced", "address", "moved"]
)
def test_ends_that_somebody_vouches_for_make_the_base_smaller_and_use_nothing_up(end):
    owner = {"owner": "u"} if end in {"closed", "fenced"} else {}
    ledger = Ledger(protected=Protected(share=0.2, floor=1, window=WINDOW))
    for n in range(100):
        going = n < 50
        mine = {"owner": f"{n}"} if owner and going else {}
        ledger.enter(f"lease-{n}", an_entry(n + 1, ip="10.0.0.2" if going else "10.0.0.1", **mine))
    ledger.enter("first", an_entry(999))
    ledger.wait(30.0, *(f"lease-{n}" for n in range(100)))  # the first one's end begins the window
    assert len(there(ledger)) == 100
    for n in range(50):
        ref = a_ref(n + 1, ip="10.0.0.2")
        match end:
            case "goodbye":
                ledger.release(f"lease-{n}")
            case "deregistered":
                ledger.deregister(f"lease-{n}", ref)
                ledger.detach(f"lease-{n}")
            case "deleted":
                ledger.detach(f"lease-{n}")
                ledger.delete(ref)
            case "closed":
                ledger.detach(f"lease-{n}")
                ledger.close(f"{n}")
            case "fenced":
                ledger.detach(f"lease-{n}")
                ledger.fence(GonePod(uid=f"{n}"))
            case "address":
                ledger.detach(f"lease-{n}")
            case "moved":
                ledger.hear(a_write(an_entry(n + 1, ip="10.0.0.2"), lease=f"lease-{n}", term=2))
    if end == "address":
        ledger.fence(GonePod(uid="gone", ips=["10.0.0.2"]))
    assert ledger.catalog.speaking() == 50
    ledger.take()
    ledger.wait(30.0)
    # A fifth of the 51 that it has come to since the window began, and not of 101; one was used before.
    assert expired(ledger) == 10 - 1


def test_who_comes_and_goes_within_a_window_does_not_make_the_base_smaller():
    """Rolling updates confirm as many ends as they make beginnings."""
    ledger = crowd(100)
    ledger.enter("first", an_entry(999))
    ledger.wait(30.0, *(f"lease-{n}" for n in range(100)))
    for n in range(500):
        ledger.enter("passing", an_entry(5000 + n))
        ledger.release("passing")
    ledger.wait(30.0 - 5.0)
    ledger.take()
    ledger.wait(5.0)
    assert expired(ledger) == 10 - 1


def test_sessions_that_hold_nothing_are_not_in_the_base():
    ledger = crowd(20)
    for n in range(1000):
        ledger.attach(f"subscriber-{n}")
    ledger.wait(30.0)
    assert len(there(ledger)) == 18


def test_nor_is_what_other_replicas_own():
    ledger = crowd(20)
    for n in range(1000):
        ledger.hear(a_write(an_entry(n + 1, ip="10.0.0.9"), lease=f"theirs-{n}"))
    ledger.wait(30.0)
    assert sum(1 for i in ledger.shown().values() if i.ip == "10.0.0.1") == 18


def test_scaling_down_by_confirmed_deletions_never_brings_protection_on():
    """Eureka #1267: autoscaling drove it into self-preservation for ever."""
    ledger = crowd(100)
    for n in range(95):
        ledger.close(f"{n}")
        ledger.release(f"lease-{n}")
        ledger.wait(1.0, *(f"lease-{m}" for m in range(n + 1, 100)))
    ledger.wait(120.0, *(f"lease-{m}" for m in range(95, 100)))
    assert not ledger.protection.active
    assert len(there(ledger)) == 5
    # And what is left is judged by silence alone: the floor is for such.
    ledger.wait(30.0, *(f"lease-{m}" for m in range(97, 100)))
    assert len(there(ledger)) == 3


# --- it ends by itself ----------------------------------------------------------------------------------


def test_the_base_shrinks_with_each_window_until_nobody_silent_is_left():
    ledger = crowd(50, share=0.5, floor=1)
    ledger.wait(30.0)
    left = [len(there(ledger))]
    while ledger.protection.active:
        ledger.wait(WINDOW)
        left.append(len(there(ledger)))
    assert left == [25, 13, 7, 4, 2, 1, 0]
    assert ledger.catalog.leases == 0


def test_recovered_ones_are_not_struck():
    ledger = crowd(100)
    ledger.wait(30.0)
    kept = sorted(there(ledger))
    for port in kept:
        ledger.beat(f"lease-{port - 1}")
    assert all(i.healthy for i in ledger.shown().values())
    beating = [f"lease-{port - 1}" for port in kept]
    ledger.wait(2 * WINDOW, *beating)
    assert sorted(there(ledger)) == kept
    assert not ledger.protection.active


def test_who_recovers_and_falls_silent_again_is_judged_like_everybody():
    ledger = crowd(100)
    ledger.wait(30.0)
    (port, *_) = sorted(there(ledger))
    ledger.beat(f"lease-{port - 1}")
    assert ledger.shown()[f"10.0.0.1:{port}:DEFAULT"].healthy
    ledger.wait(15.0)
    assert not ledger.shown()[f"10.0.0.1:{port}:DEFAULT"].healthy
    assert ledger.take()


def test_protection_does_not_begin_and_end_with_each_window():
    """While anybody is kept there is no moment without it, or it would be told once a minute."""
    ledger = crowd(100, floor=1, share=0.02)
    ledger.now += TICK / 3  # windows end between two ticks of the wheel
    ledger.wait(31.0)
    assert ledger.protection.active
    for _ in range(int(2 * WINDOW / TICK)):
        ledger.step()
        assert ledger.protection.active


# --- what else a kept lease holds -----------------------------------------------------------------------


def test_an_instance_that_would_go_before_it_turns_silent_turns_silent_when_it_is_kept():
    ledger = crowd(100, metadata={"preserved.ip.delete.timeout": "4000"})
    ledger.wait(4.0)
    assert len(there(ledger)) == 90
    assert not any(i.healthy for i in ledger.shown().values())
    port = min(there(ledger))
    ledger.beat(f"lease-{port - 1}")
    assert ledger.shown()[f"10.0.0.1:{port}:DEFAULT"].healthy
    ledger.wait(4.0)
    assert not ledger.shown()[f"10.0.0.1:{port}:DEFAULT"].healthy


def test_the_rest_of_a_kept_lease_is_still_listened_to():
    ledger = crowd(100)
    ledger.register("lease-0", an_entry(1, metadata={"preserved.ip.delete.timeout": "4000"}), an_entry(500))
    for n in range(1, 11):
        ledger.register(f"lease-{n}", an_entry(n + 1, metadata={"preserved.ip.delete.timeout": "3000"}))
    ledger.wait(4.0)
    assert ledger.catalog.lease("lease-0").protected
    assert ledger.shown()["10.0.0.1:500:DEFAULT"].healthy
    ledger.wait(11.0)
    assert not ledger.shown()["10.0.0.1:500:DEFAULT"].healthy


def test_a_plain_http_clients_lease_is_counted_once_however_often_its_others_beat():
    ledger = crowd(100, floor=1, share=0.01)
    ledger.do(lambda c, now: c.register_http("http/10.0.0.1:600", an_entry(600), term=0, now=now))
    ledger.do(
        lambda c, now: c.register_http("http/10.0.0.1:600", an_entry(600, cluster="z"), term=0, now=now)
    )
    for _ in range(12):
        ledger.wait(5.0)
        ledger.do(lambda c, now: c.beat_http("http/10.0.0.1:600", a_ref(600, cluster="z"), term=0, now=now))
        if ledger.protection.active:
            assert ledger.protection.kept <= 101
    assert ledger.shown()["10.0.0.1:600:z"].healthy


# --- limits ---------------------------------------------------------------------------------------------


def test_a_small_book_is_judged_by_silence_alone():
    ledger = crowd(20, floor=20)
    ledger.wait(30.0)
    assert there(ledger) == set()
    assert not ledger.protection.active


def test_a_share_of_one_protects_nothing_whoever_came_since_the_window_began():
    ledger = crowd(3, share=1.0, floor=0)
    ledger.wait(30.0)
    for n in range(100):
        ledger.enter(f"new-{n}", an_entry(n + 100))
    ledger.wait(30.0)
    assert there(ledger) == set()
    assert not ledger.protection.active


def test_a_share_of_nothing_keeps_all_but_the_floor():
    ledger = crowd(50, share=0.0, floor=3)
    ledger.wait(30.0 + WINDOW - TICK)
    assert len(there(ledger)) == 47


def test_nothing_overdue_spends_nothing():
    protection = Protection(Protected(share=0.5, floor=1), random.Random(1))
    judged = protection.judge([], leases=lambda: 10, now=0.0)
    assert judged == ([], [])
    assert not protection.active
    assert len(protection.judge(["a", "b", "c", "d", "e", "f"], leases=lambda: 10, now=1.0).out) == 5


def test_a_new_window_has_a_new_budget():
    protection = Protection(Protected(share=0.0, floor=1, window=10.0), random.Random(1))
    assert len(protection.judge(["a", "b"], leases=lambda: 2, now=0.0).out) == 1
    assert protection.due(9.9) == []
    (kept,) = protection.due(10.0)
    assert protection.judge([kept], leases=lambda: 1, now=10.0).out == [kept]
    assert not protection.active


def test_its_reason_is_one_that_is_told():
    ledger = crowd(100)
    ledger.wait(30.0)
    assert Reason.PROTECTED.value in ledger.reasons()
