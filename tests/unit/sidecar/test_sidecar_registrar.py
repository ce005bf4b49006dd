from __future__ import annotations

import random

import pytest
from structlog.testing import capture_logs

from rollbook import events
from rollbook.model import Entry
from rollbook.problems import Problem
from rollbook_sidecar.registrar import RETRY_MOST, Registrar

ENTRY = Entry(service="orders", ip="10.0.0.7", port=8080, alive=False)
OTHER = Entry(service="orders", ip="10.0.0.7", port=9090, alive=False)


class State:
    def __init__(self):
        self.beat_interval = 5.0
        self.term = 1
        self.confirmed = set()

    def is_confirmed(self, ref):
        return ref in self.confirmed


class FakeClient:
    def __init__(self):
        self.session = State()
        self.calls = []

    def put(self, *entries):
        self.calls.append(("put", entries))

    def drop(self, *refs):
        self.calls.append(("drop", refs))

    def set_down(self, *refs):
        self.calls.append(("down", refs))


class Timer:
    def __init__(self, seconds, call):
        self.seconds = seconds
        self.call = call
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


class Bench:
    def __init__(self, **options):
        self.client = FakeClient()
        self.timers = []
        self.registrar = Registrar(
            self.client, rng=random.Random(1), later=self._later, beat_interval=options.get("beat_interval")
        )

    def _later(self, seconds, call):
        self.timers.append(Timer(seconds, call))
        return self.timers[-1]

    def confirm(self, *entries):
        refs = tuple(e.ref for e in entries)
        self.client.session.confirmed.update(refs)
        self.registrar.heard(events.Confirmed(refs))

    def refuse(self, entry, code):
        self.registrar.heard(events.Rejected(entry.ref, Problem(code, "because")))

    def new_calls(self):
        calls, self.client.calls = self.client.calls, []
        return calls


@pytest.fixture
async def bench():
    return Bench()


async def test_it_registers_what_it_is_given_and_knows_when_that_is_done(bench):
    bench.registrar.start([ENTRY, OTHER])
    assert bench.new_calls() == [("put", (ENTRY, OTHER))]
    assert bench.registrar.state == "registering"
    bench.confirm(ENTRY)
    assert bench.registrar.state == "registering"
    bench.confirm(OTHER)
    assert bench.registrar.state == "registered"


async def test_nothing_to_register_is_nothing_said(bench):
    bench.registrar.start([])
    assert bench.registrar.state == "idle"
    assert bench.new_calls() == []


async def test_a_verdict_is_said_at_once_and_only_of_what_it_concerns(bench):
    bench.registrar.start([ENTRY, OTHER])
    bench.new_calls()
    bench.registrar.tell([ENTRY.ref], True)
    assert bench.new_calls() == [("down", (OTHER.ref,))]
    bench.registrar.tell([OTHER.ref], True)
    assert bench.new_calls() == [("down", ())]
    bench.registrar.tell([ENTRY.ref], False)
    assert bench.new_calls() == [("down", (ENTRY.ref,))]


@pytest.mark.parametrize("code", ["pod_terminating", "pod_gone"])
async def test_a_pod_that_is_terminating_or_gone_stops_for_good_and_says_so_once(bench, code):
    bench.registrar.start([ENTRY, OTHER])
    bench.confirm(ENTRY, OTHER)
    bench.new_calls()
    with capture_logs() as logs:
        bench.refuse(ENTRY, code)
        bench.refuse(OTHER, code)
        bench.registrar.heard(events.LeaseRefused(Problem(code, "because")))
    assert [line["code"] for line in logs] == [code]
    assert bench.registrar.state == "dismissed"
    assert bench.registrar.over.is_set()
    assert bench.new_calls() == [("drop", (ENTRY.ref, OTHER.ref))]
    bench.registrar.tell([ENTRY.ref], True)
    bench.registrar.start([ENTRY])
    assert bench.new_calls() == []
    assert bench.timers == []


async def test_a_refused_beat_of_a_closed_pod_stops_for_good_too(bench):
    bench.registrar.start([ENTRY])
    bench.registrar.heard(events.LeaseRefused(Problem("pod_gone", "because")))
    assert bench.registrar.state == "dismissed"


async def test_another_refusal_is_tried_again_with_the_verdict_of_then(bench):
    bench.registrar.start([ENTRY, OTHER])
    bench.confirm(OTHER)
    with capture_logs() as logs:
        bench.refuse(ENTRY, "forbidden")
    assert [(line["code"], line["reason"]) for line in logs] == [("forbidden", "because")]
    assert bench.registrar.state == "refused"
    bench.registrar.tell([ENTRY.ref], True)
    bench.new_calls()
    (timer,) = bench.timers
    timer.call()
    ((what, (again,)),) = bench.new_calls()
    assert (what, again.ref, again.alive) == ("put", ENTRY.ref, True)
    bench.confirm(ENTRY)
    assert bench.registrar.state == "registered"


async def test_a_refused_lease_is_tried_again_with_everything(bench):
    bench.registrar.start([ENTRY, OTHER])
    bench.new_calls()
    bench.registrar.heard(events.LeaseRefused(Problem("forbidden", "because")))
    bench.timers[0].call()
    ((what, entries),) = bench.new_calls()
    assert (what, {e.ref for e in entries}) == ("put", {ENTRY.ref, OTHER.ref})


async def test_one_retry_at_a_time_later_and_later_with_jitter_and_a_limit(bench):
    bench.registrar.start([ENTRY])
    for _ in range(12):
        bench.refuse(ENTRY, "forbidden")
        bench.refuse(ENTRY, "forbidden")
        bench.timers[-1].call()
    pauses = [t.seconds for t in bench.timers]
    assert len(pauses) == 12
    for n, pause in enumerate(pauses):
        most = min(RETRY_MOST, 2.0**n)
        assert most / 2 <= pause <= most
    assert len(set(pauses[6:])) == 6


async def test_success_makes_the_next_retry_soon_again(bench):
    bench.registrar.start([ENTRY])
    for _ in range(5):
        bench.refuse(ENTRY, "forbidden")
        bench.timers[-1].call()
    bench.confirm(ENTRY)
    bench.refuse(ENTRY, "forbidden")
    assert bench.timers[-1].seconds <= 1.0


async def test_leaving_is_for_good_and_may_be_asked_twice(bench):
    bench.registrar.start([ENTRY])
    bench.refuse(ENTRY, "forbidden")
    bench.new_calls()
    bench.registrar.leave()
    bench.registrar.leave()
    assert bench.new_calls() == [("drop", (ENTRY.ref,))]
    assert bench.registrar.state == "left"
    assert bench.registrar.over.is_set()
    assert bench.timers[0].cancelled
    bench.timers[0].call()
    bench.registrar.tell([ENTRY.ref], True)
    bench.registrar.heard(events.Ended(7))
    bench.registrar.start([ENTRY])
    assert bench.new_calls() == []
    assert bench.registrar.state == "left"


async def test_leaving_before_there_is_anything_to_register_is_for_good_too(bench):
    bench.registrar.leave()
    bench.registrar.start([ENTRY])
    assert all(what != "put" for what, _ in bench.new_calls())
    assert bench.registrar.withdrawing is False


@pytest.mark.parametrize("event", [events.Ended(3), events.Rebooted("b")])
async def test_until_it_is_registered_afresh_it_does_not_count_as_registered(bench, event):
    bench.registrar.start([ENTRY])
    bench.confirm(ENTRY)
    bench.registrar.heard(event)
    assert bench.registrar.state == "registering"
    bench.confirm(ENTRY)
    assert bench.registrar.state == "registered"


@pytest.mark.parametrize(("wanted", "expected"), [(1.0, 1.0), (9.0, 5.0), (None, 5.0)])
async def test_beats_are_as_frequent_as_the_entries_need_and_never_rarer_than_expected(wanted, expected):
    bench = Bench(beat_interval=wanted)
    bench.registrar.start([ENTRY])
    bench.confirm(ENTRY)
    assert bench.client.session.beat_interval == expected
