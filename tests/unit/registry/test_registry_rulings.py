"""Rulings: overrides, definitions beside verdicts, and services' settings."""

from __future__ import annotations

import pytest

from registrykit import ORDERS, Ledger, a_ref, an_entry, key_of
from rollbook_registry.catalog.definitions import (
    Configured,
    Defined,
    Definition,
    Overridden,
    Override,
    ServiceSettings,
)
from rollbook_registry.catalog.leases import Kind

OFFLINE = Override(enabled=False, reason="disk replaced")
CHECKER = "checker/0"


@pytest.fixture
def ledger():
    return Ledger()


def define(ledger, port=8080, **fields):
    entry = an_entry(port, ephemeral=False, **fields)
    ledger.rule(Defined(entry.ref, Definition(entry=entry)))
    return entry


def check(ledger, entry, *, works):
    if ledger.catalog.lease(CHECKER) is None:
        ledger.attach(CHECKER, kind=Kind.CHECKER)
    ledger.register(CHECKER, an_entry(entry.port, ephemeral=False, alive=works))


# --- overrides ------------------------------------------------------------------------------------------


def test_an_instance_that_was_taken_offline_stays_so_through_registrations_and_beats(ledger):
    ledger.enter("a", an_entry())
    ledger.rule(Overridden(a_ref(), OFFLINE))
    assert not ledger.only().enabled
    ledger.register("a", an_entry(weight=2.0))
    ledger.beat("a")
    assert (ledger.only().enabled, ledger.only().weight) == (False, 2.0)
    ledger.release("a")
    assert ledger.shown() == {}
    ledger.enter("another", an_entry())
    assert not ledger.only().enabled
    assert ledger.only().healthy, "health is never rewritten"


def test_an_override_may_come_before_its_instance(ledger):
    ledger.rule(Overridden(a_ref(), OFFLINE))
    assert ledger.shown() == {}
    ledger.enter("a", an_entry())
    assert not ledger.only().enabled


def test_a_lifted_override_gives_the_publishers_word_back(ledger):
    ledger.enter("a", an_entry(weight=2.0))
    ledger.rule(Overridden(a_ref(), Override(enabled=False, weight=9.0)))
    assert (ledger.only().enabled, ledger.only().weight) == (False, 9.0)
    ledger.register("a", an_entry(weight=3.0))
    ledger.rule(Overridden(a_ref(), None))
    assert (ledger.only().enabled, ledger.only().weight) == (True, 3.0)


def test_weight_and_enabled_are_laid_down_apart(ledger):
    ledger.enter("a", an_entry(weight=2.0, enabled=False))
    ledger.rule(Overridden(a_ref(), Override(weight=0.0)))
    assert (ledger.only().enabled, ledger.only().weight) == (False, 0.0)
    ledger.rule(Overridden(a_ref(), Override(enabled=True)))
    assert (ledger.only().enabled, ledger.only().weight) == (True, 2.0)


def test_it_stands_above_what_a_pods_operator_says(ledger):
    ledger.enter("operator", an_entry(owner="u", weight=4.0), operator=True)
    ledger.enter("a", an_entry(owner="u"))
    ledger.rule(Overridden(a_ref(owner="u"), OFFLINE))
    assert (ledger.only().enabled, ledger.only().weight) == (False, 4.0)
    ledger.register("operator", an_entry(owner="u", weight=5.0))
    assert (ledger.only().enabled, ledger.only().weight) == (False, 5.0)


def test_another_pod_at_the_same_address_is_another_instance(ledger):
    ledger.rule(Overridden(a_ref(owner="u"), OFFLINE))
    ledger.enter("a", an_entry(owner="v"))
    assert ledger.only().enabled


def test_it_goes_for_everything_that_is_listed_at_its_endpoint(ledger):
    ledger.enter("a", an_entry())
    ledger.enter("b", an_entry(weight=2.0))
    ledger.rule(Overridden(a_ref(), OFFLINE))
    assert [i.enabled for i in ledger.shown().values()] == [False, False]


def test_what_is_laid_down_is_told_with_its_reason_once(ledger):
    ledger.enter("a", an_entry())
    ledger.take()
    ledger.rule(Overridden(a_ref(), OFFLINE))
    (change, *_) = [e for e in ledger.events if hasattr(e, "put")]
    assert [i.enabled for i in change.put] == [False]
    assert ledger.reasons() == ["overridden"]
    ledger.rule(Overridden(a_ref(), OFFLINE))
    assert ledger.take() == []
    ledger.rule(Overridden(a_ref(), None))
    assert ledger.reasons() == ["override_lifted"]


def test_it_is_a_replicas_own_and_not_written_to_others(ledger):
    ledger.enter("a", an_entry())
    ledger.take()
    ledger.told.clear()
    ledger.rule(Overridden(a_ref(), OFFLINE))
    define(ledger, 81)
    assert ledger.told == []
    assert list(ledger.catalog.own()) == ["a"]


# --- definitions and verdicts ---------------------------------------------------------------------------


def test_a_defined_instance_stays_without_any_beat_until_it_is_taken_back(ledger):
    entry = define(ledger)
    ledger.wait(700.0)
    assert (ledger.only().healthy, ledger.only().ephemeral) == (True, False)
    ledger.rule(Defined(entry.ref, None))
    assert ledger.shown() == {}
    assert ledger.catalog.leases == 0


def test_its_health_is_the_newest_verdict(ledger):
    entry = define(ledger)
    check(ledger, entry, works=False)
    assert not ledger.only().healthy
    ledger.attach("checker/1", kind=Kind.CHECKER)
    ledger.register("checker/1", an_entry(ephemeral=False, alive=True))
    assert ledger.only().healthy
    check(ledger, entry, works=False)
    assert not ledger.only().healthy
    ledger.wait(700.0)
    assert not ledger.only().healthy, "a checker's lease is never silent"


def test_a_verdict_without_a_definition_shows_nothing(ledger):
    check(ledger, an_entry(), works=True)
    assert ledger.shown() == {}
    define(ledger)
    assert ledger.only().healthy


def test_without_a_verdict_it_is_as_it_was_defined(ledger):
    define(ledger, alive=False)
    assert not ledger.only().healthy


def test_a_definition_that_changes_keeps_its_verdict(ledger):
    check(ledger, define(ledger), works=False)
    define(ledger, weight=3.0)
    assert (ledger.only().weight, ledger.only().healthy) == (3.0, False)


def test_a_persistent_instance_and_a_client_at_one_endpoint_are_listed_side_by_side(ledger):
    check(ledger, define(ledger), works=False)
    ledger.enter("a", an_entry())
    persistent, client = ledger.shown().values()
    assert (persistent.key, persistent.ephemeral, persistent.healthy) == (
        "10.0.0.1:8080:DEFAULT",
        False,
        False,
    )
    assert client.key.startswith("10.0.0.1:8080:DEFAULT~")
    assert (client.ephemeral, client.healthy) == (True, True)
    ledger.wait(30.0)
    assert ledger.only() == persistent


def test_deregistering_whatever_is_there_leaves_what_was_defined(ledger):
    define(ledger)
    ledger.enter("a", an_entry())
    assert ledger.delete(a_ref())
    assert not ledger.only().ephemeral
    assert not ledger.delete(a_ref())


# --- services' settings ---------------------------------------------------------------------------------


def test_a_service_with_settings_is_kept_though_it_is_empty(ledger):
    ledger.rule(Configured(ORDERS, ServiceSettings(metadata={"team": "a"})))
    ledger.wait(120.0)
    assert ledger.catalog.service(ORDERS) is not None
    ledger.enter("a", an_entry())
    ledger.release("a")
    ledger.wait(120.0)
    assert ledger.catalog.service(ORDERS) is not None
    ledger.rule(Configured(ORDERS, None))
    ledger.wait(120.0)
    assert ledger.catalog.service(ORDERS) is None


def test_settings_that_are_lifted_leave_a_service_that_has_instances(ledger):
    ledger.enter("a", an_entry())
    ledger.rule(Configured(ORDERS, ServiceSettings()))
    ledger.rule(Configured(ORDERS, None))
    ledger.wait(120.0, "a")
    assert len(ledger.shown()) == 1


def test_a_protect_threshold_that_changes_is_told_to_subscribers(ledger):
    ledger.enter("a", an_entry())
    ledger.take()
    ledger.rule(Configured(ORDERS, ServiceSettings(protect_threshold=0.5)))
    (change,) = ledger.changes()
    assert (change.put, change.drop, change.number > change.base) == ((), (), True)
    ledger.rule(Configured(ORDERS, ServiceSettings(protect_threshold=0.5, metadata={"a": "b"})))
    assert ledger.changes() == []
    ledger.rule(Configured(ORDERS, None))
    assert len(ledger.changes()) == 1
    assert ledger.catalog.rulings.protect_threshold(ORDERS) is None


def test_settings_of_one_service_are_no_others(ledger):
    ledger.rule(Configured(ORDERS, ServiceSettings(protect_threshold=0.5)))
    assert ledger.catalog.rulings.protect_threshold(key_of("invoices")) is None
