"""History: what is remembered of services, how much of it, and what goes first."""

from __future__ import annotations

from registrykit import a_ref, key_of
from rollbook.names import LeaseId
from rollbook_registry.catalog import Happened, Reason
from rollbook_registry.catalog.history import PER_SERVICE, History


def note(history, service, n, reason=Reason.REGISTERED):
    event = Happened(key_of(service), a_ref(n, service=service), LeaseId("a"), reason)
    history.note(event, at=float(n), number=n)


def keys(history, service):
    return [past.ref.port for past in history.of(key_of(service))]


def test_the_newest_is_told_first_with_all_that_is_known():
    history = History(100)
    note(history, "orders", 1)
    note(history, "orders", 2, Reason.SILENT)
    newest, oldest = history.of(key_of("orders"))
    assert (newest.at, newest.key, newest.reason, newest.lease, newest.number) == (
        2.0, "10.0.0.1:2:DEFAULT", Reason.SILENT, "a", 2,
    )  # fmt: skip
    assert oldest.reason is Reason.REGISTERED


def test_of_an_unknown_service_there_is_nothing():
    assert keys(History(100), "orders") == []


def test_it_is_bounded_per_service():
    history = History(10_000)
    for n in range(PER_SERVICE + 50):
        note(history, "orders", n)
    assert keys(history, "orders") == list(reversed(range(50, PER_SERVICE + 50)))
    assert len(history) == PER_SERVICE


def test_it_is_bounded_in_all_and_the_oldest_of_all_services_go_first():
    history = History(5)
    for n in range(4):
        note(history, "first", n)
    for n in range(4):
        note(history, "second", n)
    assert len(history) == 5
    assert keys(history, "first") == [3]
    assert keys(history, "second") == [3, 2, 1, 0]
    note(history, "third", 0)
    assert keys(history, "first") == []
    assert sum(1 for _ in history._by_service) == 2, "nothing is kept of a service without events"


def test_a_busy_service_does_not_push_others_out():
    history = History(PER_SERVICE + 10)
    for n in range(10):
        note(history, "quiet", n)
    for n in range(50 * PER_SERVICE):
        note(history, "busy", n)
    assert keys(history, "quiet") == list(reversed(range(10)))
    assert len(keys(history, "busy")) == PER_SERVICE


def test_it_keeps_count_however_services_come_and_go():
    history = History(50)
    for n in range(2000):
        note(history, f"service-{(n * 7) % 13}", n)
        held = sum(len(events) for events in history._by_service.values())
        assert len(history) == held <= 50


def test_without_room_nothing_is_kept():
    history = History(0)
    note(history, "orders", 1)
    assert (keys(history, "orders"), len(history)) == ([], 0)
