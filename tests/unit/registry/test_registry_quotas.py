"""Quotas: how much may be in the book, and in a namespace; what is there may always be said again."""

from __future__ import annotations

import pytest

from registrykit import Ledger, a_ref, an_entry
from rollbook.problems import Problem
from rollbook_registry.catalog import Quotas
from rollbook_registry.catalog.definitions import Defined, Definition, Named, Namespace
from rollbook_registry.catalog.leases import DEFINITIONS, Kind, http_lease


@pytest.fixture
def ledger():
    return Ledger(quotas=Quotas(max_instances=3, max_services=2))


def refused(command, *args):
    with pytest.raises(Problem) as found:
        command(*args)
    assert found.value.code == "limit_reached"
    return found.value


def test_a_full_book_takes_nothing_new_and_names_its_limit(ledger):
    ledger.enter("a", an_entry(1), an_entry(2), an_entry(3))
    ledger.take()
    problem = refused(ledger.register, "a", an_entry(4))
    assert problem.detail == (
        "this registry holds 3 instances and may hold 3 (--max-instances); 1 more were to be entered"
    )
    refused(ledger.register_http, an_entry(4))
    assert ledger.take() == []
    assert len(ledger.shown()) == 3
    assert ledger.catalog.lease(http_lease(a_ref(4))) is None


def test_nothing_of_a_frame_is_taken_that_would_exceed_it(ledger):
    ledger.enter("a", an_entry(1))
    refused(ledger.register, "a", an_entry(2), an_entry(3), an_entry(4))
    assert len(ledger.shown()) == 1


def test_the_same_instance_twice_in_a_frame_counts_once(ledger):
    ledger.enter("a", an_entry(1), an_entry(2), an_entry(3), an_entry(3, weight=2.0))
    assert len(ledger.shown()) == 3


def test_room_that_is_made_may_be_used(ledger):
    ledger.enter("a", an_entry(1), an_entry(2), an_entry(3))
    ledger.deregister("a", a_ref(1))
    ledger.register("a", an_entry(4))
    refused(ledger.register, "a", an_entry(5))


def test_what_is_there_may_be_said_again_and_changed_at_a_full_quota(ledger):
    ledger.enter("a", an_entry(1), an_entry(2), an_entry(3))
    ledger.register("a", an_entry(1, weight=7.0))
    assert ledger.shown()["10.0.0.1:1:DEFAULT"].weight == 7.0


def test_a_restarted_client_takes_its_former_selfs_place_at_a_full_quota(ledger):
    ledger.enter("a", an_entry(1), an_entry(2), an_entry(3))
    # Its former connection has not been noticed to be broken: what it says is equal.
    ledger.enter("b", an_entry(1), an_entry(2))
    assert len(ledger.shown()) == 3
    ledger.detach("a")
    ledger.enter("c", an_entry(3, weight=2.0))
    assert len(ledger.shown()) == 3


def test_others_at_the_same_endpoint_are_listed_apart_and_count(ledger):
    ledger.enter("a", an_entry(1, weight=1.0))
    ledger.enter("b", an_entry(1, weight=2.0))
    ledger.enter("c", an_entry(1, weight=3.0))
    assert len(ledger.shown()) == 3
    refused(ledger.enter, "d", an_entry(1, weight=4.0))


def test_each_port_of_a_pod_counts(ledger):
    ledger.enter("a", an_entry(1, owner="u"), an_entry(2, owner="u"), an_entry(3, owner="u"))
    refused(ledger.register, "a", an_entry(4, owner="u"))


def test_operator_and_sidecar_speak_for_one_instance(ledger):
    ledger.enter("operator", *(an_entry(p, owner="u", cluster="eu-1") for p in (1, 2, 3)), operator=True)
    ledger.enter("a", *(an_entry(p, owner="u") for p in (1, 2, 3)))
    assert len(ledger.shown()) == 3


def test_a_checks_verdict_is_never_refused(ledger):
    entries = [an_entry(p, ephemeral=False) for p in (1, 2, 3)]
    ledger.rule(*(Defined(e.ref, Definition(entry=e)) for e in entries))
    ledger.attach("checker/0", kind=Kind.CHECKER)
    ledger.register("checker/0", an_entry(1, ephemeral=False, alive=False), an_entry(9, ephemeral=False))
    assert [i.healthy for i in ledger.shown().values()] == [False, True, True]


def test_a_definition_is_asked_for_before_it_is_laid_down(ledger):
    entries = [an_entry(p, ephemeral=False) for p in (1, 2, 3, 4)]
    ledger.rule(*(Defined(e.ref, Definition(entry=e)) for e in entries[:3]))
    ledger.catalog.check_room(DEFINITIONS, entries[:3])
    refused(ledger.catalog.check_room, DEFINITIONS, entries[3:])


def test_services_are_counted_those_that_are_empty_but_listed_included(ledger):
    ledger.enter("a", an_entry(service="one"), an_entry(service="two"))
    ledger.deregister("a", a_ref(service="one"))
    problem = refused(ledger.register, "a", an_entry(service="three"))
    assert "--max-services" in problem.detail
    ledger.register("a", an_entry(service="one"))
    ledger.deregister("a", a_ref(service="one"))
    ledger.wait(61.0, "a")
    ledger.register("a", an_entry(service="three"))


def test_a_known_pods_new_service_counts_as_one(ledger):
    ledger.enter("a", an_entry(service="one", owner="u"), an_entry(service="two", owner="u"))
    refused(ledger.register, "a", an_entry(service="three", owner="u"))


def test_a_namespace_has_a_quota_of_its_own(ledger):
    ledger.rule(Named("tenant", Namespace(max_instances=1, max_services=1)))
    ledger.enter("a", an_entry(1, namespace="tenant"))
    problem = refused(ledger.register, "a", an_entry(2, namespace="tenant"))
    assert problem.detail == (
        "namespace tenant holds 1 instances and may hold 1 (namespace tenant's record); "
        "1 more were to be entered"
    )
    assert problem.field == "namespace"
    ledger.register("a", an_entry(2))


def test_so_it_has_for_services(ledger):
    ledger.rule(Named("tenant", Namespace(max_services=1)))
    ledger.enter("a", an_entry(1, namespace="tenant"))
    refused(ledger.register, "a", an_entry(1, namespace="tenant", service="another"))
    ledger.register("a", an_entry(2, namespace="tenant"))


def test_a_quota_that_is_taken_back_or_lowered_goes_for_what_comes(ledger):
    ledger.rule(Named("tenant", Namespace(max_instances=1)))
    ledger.enter("a", an_entry(1, namespace="tenant"))
    ledger.rule(Named("tenant", Namespace(max_instances=0)))
    assert ledger.catalog.services.usage("tenant").instances == 1
    refused(ledger.register, "a", an_entry(2, namespace="tenant"))
    ledger.rule(Named("tenant", None))
    ledger.register("a", an_entry(2, namespace="tenant"))


def test_what_other_replicas_bring_is_never_refused(ledger):
    """Their clients were told that they are in the book."""
    other = Ledger(ordinal=1)
    other.enter("b", *(an_entry(p) for p in range(1, 6)))
    assert ledger.hear(other.catalog.record("b"), origin=1) == "taken"
    assert len(ledger.shown()) == 5
