"""Beats and silence: 15 s turn unhealthy, 30 s leave the book, and what comes after."""

from __future__ import annotations

import sys

import pytest

from registrykit import TICK, Ledger, a_ref, an_entry
from rollbook.problems import Problem
from rollbook_registry.catalog.leases import http_lease
from rollbook_registry.expiry.expiry import SLICE

UNHEALTHY, REMOVE = "preserved.heart.beat.timeout", "preserved.ip.delete.timeout"


@pytest.fixture
def ledger():
    return Ledger()


def test_an_instance_that_beats_stays_healthy_and_nothing_changes(ledger):
    ledger.enter("a", an_entry())
    ledger.take()
    ledger.wait(3600.0, "a")
    assert ledger.only().healthy
    assert ledger.changes() == []


def test_it_turns_unhealthy_at_15_s_of_silence_and_is_removed_at_30(ledger):
    ledger.enter("a", an_entry())
    ledger.wait(15.0 - TICK)
    assert ledger.only().healthy
    ledger.wait(TICK)
    instance = ledger.only()
    assert (instance.healthy, instance.alive, instance.ready) == (False, False, True)
    ledger.wait(15.0 - TICK)
    assert not ledger.only().healthy
    ledger.wait(TICK)
    assert ledger.shown() == {}
    assert ledger.reasons() == ["attached", "registered", "silent", "expired", "expired"]


def test_the_provider_recovers_before_the_removal_time(ledger):
    ledger.enter("a", an_entry())
    ledger.wait(20.0)
    assert not ledger.only().healthy
    ledger.take()
    ledger.beat("a")
    assert ledger.only().healthy
    (change,) = ledger.changes()
    assert [i.healthy for i in change.put] == [True]
    ledger.wait(14.0)
    assert ledger.only().healthy


def test_the_provider_recovers_after_the_removal_time(ledger):
    ledger.enter("a", an_entry())
    term = ledger.catalog.lease("a").term
    ledger.wait(40.0)
    assert ledger.shown() == {}
    ledger.take()
    # Its late beat is ignored and answered so, whatever term it names.
    for late in (term, term + 10):
        with pytest.raises(Problem) as refused:
            ledger.beat("a", term=late)
        assert refused.value.code == "lease_ended"
    assert ledger.take() == []
    assert ledger.catalog.ended("a") == term
    with pytest.raises(Problem) as refused:
        ledger.register("a", an_entry())
    assert refused.value.code == "lease_ended"
    # It registers afresh under a higher term, and no stale entry is beside it.
    attachment = ledger.attach("a", term=term)
    assert attachment == (term + 1, False)
    ledger.register("a", an_entry())
    assert ledger.only().healthy
    ledger.wait(60.0, "a")
    assert ledger.only().healthy


def test_a_beat_of_an_older_term_is_ignored(ledger):
    ledger.enter("a", an_entry())
    ledger.detach("a")
    ledger.attach("a")
    ledger.wait(14.0)
    with pytest.raises(Problem) as refused:
        ledger.beat("a", term=1)
    assert refused.value.code == "lease_ended"
    ledger.wait(1.0)
    assert not ledger.only().healthy


def test_timings_of_an_instance_come_from_nacos_keys(ledger):
    ledger.enter("a", an_entry(metadata={UNHEALTHY: "3000", REMOVE: "6000"}), an_entry(81))
    ledger.wait(3.0)
    assert [i.healthy for i in ledger.shown().values()] == [False, True]
    ledger.wait(3.0)
    assert [i.port for i in ledger.shown().values()] == [81]
    ledger.wait(9.0)
    assert not ledger.only().healthy


def test_an_instance_may_be_removed_sooner_than_it_would_turn_unhealthy(ledger):
    ledger.enter("a", an_entry(metadata={REMOVE: "5000"}))
    ledger.wait(5.0 - TICK)
    assert ledger.only().healthy
    ledger.wait(TICK)
    assert ledger.shown() == {}


def test_shorter_timings_said_later_count_at_once(ledger):
    ledger.enter("a", an_entry())
    ledger.wait(5.0)
    ledger.register("a", an_entry(metadata={UNHEALTHY: "1000", REMOVE: "2000"}))
    ledger.wait(1.0)
    assert not ledger.only().healthy
    ledger.wait(1.0)
    assert ledger.shown() == {}


@pytest.mark.parametrize("plain_http", [False, True])
def test_who_recovers_and_falls_silent_again_is_noticed_again_in_time(plain_http):
    # The removal time is far away: until then the wheel would not look again by itself.
    ledger = Ledger(unhealthy_after=5.0, remove_after=600.0)
    if plain_http:
        ledger.register_http(an_entry())
    else:
        ledger.enter("a", an_entry())
    for _ in range(3):
        ledger.wait(5.0)
        assert not ledger.only().healthy
        ledger.beat_http(a_ref()) if plain_http else ledger.beat("a")
        assert ledger.only().healthy
    ledger.wait(5.0 - TICK)
    assert ledger.only().healthy
    ledger.wait(TICK)
    assert not ledger.only().healthy


def test_an_application_that_is_down_is_not_alive_though_its_publisher_beats(ledger):
    ledger.enter("a", an_entry(), an_entry(81))
    ledger.take()
    ledger.beat("a", down=[a_ref()])
    (change,) = ledger.changes()
    assert [(i.port, i.alive) for i in change.put] == [(8080, False)]
    ledger.beat("a", down=[a_ref()])
    assert ledger.changes() == []
    ledger.wait(60.0)
    assert ledger.shown() == {}


def test_an_application_comes_back_with_the_beat_that_does_not_name_it(ledger):
    ledger.enter("a", an_entry(alive=False))
    assert not ledger.only().healthy
    ledger.take()
    ledger.beat("a", down=[a_ref()])
    assert ledger.take() == []
    ledger.beat("a")
    assert ledger.only().healthy
    assert ledger.reasons() == ["application_up"]


def test_what_a_beat_names_as_down_and_is_registered_as_alive_is_alive_until_the_next(ledger):
    ledger.enter("a", an_entry(81))
    ledger.beat("a", down=[a_ref()])
    ledger.register("a", an_entry())
    assert all(i.alive for i in ledger.shown().values())
    ledger.beat("a", down=[a_ref()])
    assert [i.port for i in ledger.shown().values() if not i.alive] == [8080]


# --- plain HTTP -----------------------------------------------------------------------------------------


def test_a_plain_http_client_beats_each_instance_by_itself(ledger):
    ledger.register_http(an_entry())
    ledger.register_http(an_entry(service="invoices"))
    for _ in range(4):
        ledger.wait(5.0)
        ledger.beat_http(a_ref())
    assert ledger.only().healthy
    ledger.wait(5.0)
    ledger.beat_http(a_ref())
    ledger.wait(5.0)
    assert {e.service.name for e in ledger.changes() if e.drop} == {"invoices"}


def test_each_instance_of_an_address_keeps_its_own_term(ledger):
    first = ledger.register_http(an_entry())
    second = ledger.register_http(an_entry(service="invoices"))
    ledger.beat_http(a_ref(), term=first)
    ledger.beat_http(a_ref(service="invoices"), term=second)
    again = ledger.register_http(an_entry())
    with pytest.raises(Problem) as refused:
        ledger.beat_http(a_ref(), term=first)
    assert refused.value.code == "stale_term"
    ledger.beat_http(a_ref(), term=again)
    ledger.beat_http(a_ref())


def test_a_light_beat_of_something_unknown_is_told_so(ledger):
    with pytest.raises(Problem) as refused:
        ledger.beat_http(a_ref())
    assert refused.value.code == "unknown_instance"


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("how", ["expired", "deregistered"])
def test_a_late_beat_of_a_plain_http_client_is_answered_lease_ended(ledger, how, beside):
    term = ledger.register_http(an_entry())
    if beside:
        # Another service of the same process goes on: the address is known, this instance has ended.
        ledger.register_http(an_entry(service="invoices"))
    if how == "expired":
        for _ in range(6):
            ledger.wait(5.0)
            if beside:
                ledger.beat_http(a_ref(service="invoices"))
    else:
        ledger.do(lambda c, now: c.deregister_everywhere(a_ref(), operators=False, now=now))
    assert ledger.shown() == {}
    for given in (0, term):
        with pytest.raises(Problem) as refused:
            ledger.beat_http(a_ref(), term=given)
        assert refused.value.code == "lease_ended"
    assert ledger.catalog.has_ended(http_lease(a_ref()), a_ref())
    assert ledger.register_http(an_entry()) > term
    ledger.beat_http(a_ref())
    assert ledger.only().healthy


def test_an_ended_lease_is_forgotten_after_ten_minutes(ledger):
    ledger.register_http(an_entry())
    ledger.enter("a", an_entry(81))
    ledger.wait(35.0)
    assert ledger.catalog.ended("a") == 1
    ledger.wait(600.0)
    assert ledger.catalog.ended("a") is None
    with pytest.raises(Problem) as refused:
        ledger.beat_http(a_ref())
    assert refused.value.code == "unknown_instance"


def test_changing_an_instance_over_http_is_no_sign_of_life_of_its_neighbours(ledger):
    ledger.register_http(an_entry())
    ledger.register_http(an_entry(service="invoices"))
    ledger.wait(20.0)
    ledger.register(http_lease(a_ref(service="invoices")), an_entry(weight=2.0, service="invoices"))
    assert not ledger.only().healthy


# --- services -------------------------------------------------------------------------------------------


def test_an_empty_service_lingers_for_a_minute_and_is_dropped(ledger):
    ledger.enter("a", an_entry())
    ledger.release("a")
    ledger.wait(59.0)
    assert ledger.catalog.service(an_entry().service_key) is not None
    ledger.wait(1.0)
    assert ledger.catalog.service(an_entry().service_key) is None
    assert len(ledger.catalog.services) == 0


def test_a_service_that_is_used_again_lives_on(ledger):
    ledger.enter("a", an_entry())
    ledger.release("a")
    ledger.wait(59.0)
    ledger.enter("a", an_entry())
    ledger.wait(5.0, "a")
    assert len(ledger.shown()) == 1
    ledger.release("a")
    ledger.wait(59.0)
    assert ledger.catalog.service(an_entry().service_key) is not None


def test_a_service_that_was_dropped_begins_anew_with_a_number_never_used(ledger):
    ledger.enter("a", an_entry())
    ledger.release("a")
    number = ledger.catalog.service(an_entry().service_key).number
    ledger.wait(61.0)
    ledger.enter("a", an_entry())
    service = ledger.catalog.service(an_entry().service_key)
    assert service.number > number
    assert service.since(number) is None
    assert [i.port for i in service.since(0)[0]] == [8080]


def test_the_changes_that_are_remembered_keep_no_instance_that_was_replaced(ledger):
    ledger.enter("a", an_entry(weight=2.0))
    replaced = ledger.only()
    ledger.register("a", an_entry(weight=3.0))
    ledger.take()
    # Its local name, and the argument of the call.
    assert sys.getrefcount(replaced) == 2
    assert [i.weight for i in ledger.catalog.service(an_entry().service_key).since(0)[0]] == [3.0]


def test_services_that_came_and_went_unseen_leave_nothing_in_the_digest(ledger):
    ledger.enter("a", an_entry())
    ledger.release("a")
    ledger.wait(61.0)
    assert not ledger.catalog.services._stale
    assert ledger.catalog.digest == 0


def test_who_is_silent_is_counted_exactly_so_that_a_beat_looks_only_then(ledger):
    ledger.enter("a", an_entry(), an_entry(81), an_entry(82))
    lease = ledger.catalog.lease("a")
    ledger.wait(15.0)
    assert lease.quiet == 3
    ledger.deregister("a", a_ref())
    assert lease.quiet == 2
    ledger.register("a", an_entry(81))
    assert lease.quiet == 0
    assert all(i.healthy for i in ledger.shown().values())


def crowd(ledger, count, entries=1):
    """Have so many sessions enter instances, and fall silent until one tick before they turn."""
    for number in range(count):
        ports = range(1, entries + 1)
        ledger.enter(
            f"s{number}", *(an_entry(ip=f"10.1.{number >> 8}.{number & 255}", port=p) for p in ports)
        )
    ledger.wait(15.0 - TICK)
    ledger.take()


def steps_of_a_tick(ledger):
    """Begin a tick of the wheel, and return what goes on with it, one step at a time."""
    ledger.now += TICK
    steps = ledger.expiry.steps(ledger.now)

    def step() -> bool:
        return ledger.do(lambda *_: next(steps, "over") != "over")

    return step


@pytest.mark.parametrize(("leases", "entries"), [(3 * SLICE, 1), (6, SLICE // 2)])
def test_between_the_steps_of_a_tick_others_have_their_turn(ledger, leases, entries):
    crowd(ledger, leases, entries)
    step = steps_of_a_tick(ledger)
    for turned in (1, 2, 3):
        assert step()
        service = ledger.catalog.service(an_entry().service_key)
        assert len(service.instances) - service.healthy == turned * leases * entries // 3
    assert not step()


def test_what_turns_in_one_step_is_one_change_of_its_service(ledger):
    crowd(ledger, 20)
    ledger.step()
    (change,) = ledger.changes()
    assert [i.alive for i in change.put] == [False] * 20


def test_who_beats_before_it_is_carried_out_stays(ledger):
    crowd(ledger, 3 * SLICE)
    ledger.wait(15.0)  # all have turned, and are due to go with the next tick
    step = steps_of_a_tick(ledger)
    for _ in range(3):
        assert step()  # all have been looked at
    assert step()  # the first are out
    left = [f"s{n}" for n in range(3 * SLICE) if ledger.catalog.lease(f"s{n}") is not None]
    assert len(left) == 2 * SLICE
    ledger.beat(left[0])
    while step():
        pass
    assert [n for n in left if ledger.catalog.lease(n) is not None] == left[:1]
    assert ledger.only().healthy
    ledger.wait(15.0)
    assert not ledger.only().healthy, "its deadline is in the wheel again"


def test_ends_are_remembered_for_ten_minutes_and_of_the_last_hundred_thousand(ledger, monkeypatch):
    monkeypatch.setattr("rollbook_registry.catalog.ledger.MAX_ENDED", 200)
    refs = [a_ref(port=port) for port in range(1, 302)]
    for ref in refs:
        ledger.register_http(an_entry(port=ref.port))
        ledger.delete(ref)
    remembered = [ledger.catalog.has_ended(http_lease(ref), ref) for ref in refs]
    # A hundredth goes at once: two.
    assert remembered == [False] * 102 + [True] * 199
    ledger.wait(600.0 - TICK)
    assert ledger.catalog.has_ended(http_lease(refs[-1]), refs[-1])
    ledger.wait(TICK)
    assert not ledger.catalog.has_ended(http_lease(refs[-1]), refs[-1])


def test_who_beats_while_others_are_looked_at_is_not_counted_as_silent(ledger):
    crowd(ledger, 3 * SLICE)
    ledger.wait(15.0)  # all have turned, and are due to go with the next tick
    step = steps_of_a_tick(ledger)
    assert step()
    for n in range(3 * SLICE):
        ledger.beat(f"s{n}")
    while step():
        pass
    assert len(ledger.catalog.service(an_entry().service_key).instances) == 3 * SLICE
    assert (ledger.protection.active, ledger.protection.kept, ledger.protection._spent) == (False, 0, 0)
    ledger.wait(15.0)
    assert not any(i.healthy for i in ledger.shown().values()), "their deadlines are in the wheel again"
