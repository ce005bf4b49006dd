"""Between a sidecar's start and its first verdict on the application."""

from __future__ import annotations

import pytest

from rollbook.model import Entry
from rollbook.names import LeaseId
from rollbook_registry.catalog import Catalog, Timings
from rollbook_registry.catalog.leases import Kind

SIDECAR, OPERATOR = LeaseId("sidecar"), LeaseId("operator")
ORDERS = Entry(service="orders", ip="10.0.0.1", port=80, owner="uid-1")


def _entry(**more):
    fields = {name: getattr(ORDERS, name) for name in ORDERS.__struct_fields__}
    return Entry(**{**fields, **more})


def _healthy(catalog):
    service = catalog.service(ORDERS.service_key)
    return [i.healthy for i in service.instances.values()] if service else []


@pytest.fixture
def catalog():
    catalog = Catalog(Timings())
    catalog.attach(SIDECAR, kind=Kind.SESSION, term=0, holder=object(), now=0.0)
    catalog.attach(OPERATOR, kind=Kind.OPERATOR, term=0, holder=object(), now=0.0, epoch=1)
    return catalog


def _operator(catalog, **said):
    catalog.register(OPERATOR, [_entry(beats_required=True, **said)], 1.0)


def test_a_readiness_that_a_probe_stands_behind_counts_until_the_first_verdict(catalog):
    catalog.register(SIDECAR, [_entry(alive=None)], 1.0)
    _operator(catalog, ready=False, probed=True)
    assert _healthy(catalog) == [False]
    _operator(catalog, ready=True, probed=True)
    assert _healthy(catalog) == [True]


def test_a_readiness_without_a_probe_says_nothing_about_the_application(catalog):
    catalog.register(SIDECAR, [_entry(alive=None)], 1.0)
    _operator(catalog, ready=True, probed=False)
    assert _healthy(catalog) == [False]
    catalog.beat(SIDECAR, term=1, down=frozenset(), now=2.0)
    assert _healthy(catalog) == [True]


def test_after_the_first_verdict_only_verdicts_count(catalog):
    catalog.register(SIDECAR, [_entry(alive=None)], 1.0)
    _operator(catalog, ready=True, probed=True)
    catalog.beat(SIDECAR, term=1, down=frozenset(), now=2.0)
    catalog.beat(SIDECAR, term=1, down=frozenset({ORDERS.ref}), now=3.0)
    assert _healthy(catalog) == [False]
    catalog.register(SIDECAR, [_entry(alive=False)], 4.0)
    assert _healthy(catalog) == [False]


def test_without_an_operator_an_unproven_application_is_not_alive(catalog):
    catalog.register(SIDECAR, [_entry(alive=None)], 1.0)
    assert _healthy(catalog) == [False]


def test_a_sidecar_that_falls_silent_before_its_first_verdict_is_not_alive(catalog):
    catalog.register(SIDECAR, [_entry(alive=None)], 1.0)
    _operator(catalog, ready=True, probed=True)
    catalog.expire([SIDECAR], 16.0)
    assert _healthy(catalog) == [False]
