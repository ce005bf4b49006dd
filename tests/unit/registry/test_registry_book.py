"""The book: the catalog with its clock, its wheel and its outlets."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest
import structlog
from structlog.testing import capture_logs

from registrykit import ORDERS, an_entry
from rollbook.problems import Problem
from rollbook_registry.book import Book
from rollbook_registry.catalog import Reason
from rollbook_registry.catalog.leases import Kind
from rollbook_registry.settings import RegistrySettings


class Time:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def make(time):
    def make(**settings):
        return Book(RegistrySettings(auth="none", **settings), clock=time, wall=time)

    return make


def enter(book, *entries):
    book.apply(lambda c, now: c.attach("a", kind=Kind.SESSION, term=0, holder="s", now=now))
    book.apply(lambda c, now: c.register("a", entries, now))
    return book.catalog.service(ORDERS)


def run(book, time, seconds):
    ticks = round(seconds / book.settings.expiry_tick)
    for _ in range(ticks):
        time.now += book.settings.expiry_tick
        book.tick()


@pytest.mark.parametrize("tick", [0.25, 1.0])
def test_silence_is_judged_by_the_clock_whatever_the_tick(make, time, tick):
    book = make(expiry_tick=tick)
    service = enter(book, an_entry())
    run(book, time, 15.0 - tick)
    assert service.healthy == 1
    run(book, time, tick)
    assert service.healthy == 0
    run(book, time, 15.0)
    assert not service.instances


@pytest.mark.parametrize("late", [0.05, 0.5])
def test_ticks_that_are_a_little_late_lose_no_time(make, time, late):
    book = make(expiry_tick=1.0)
    service = enter(book, an_entry())
    for _ in range(15):
        time.now += 1.0 + late
        book.tick()
    assert service.healthy == 0
    assert book._attentive.lost == 0


def test_nobody_is_struck_out_for_what_the_registry_slept_through(make, time):
    book = make()
    service = enter(book, an_entry())
    run(book, time, 10.0)
    time.now += 3600.0
    book.tick()
    assert service.healthy == 1
    # The beats that had piled up meanwhile are read, and all is well.
    book.apply(lambda c, now: c.beat("a", term=1, down=frozenset(), now=now))
    run(book, time, 14.0)
    assert service.healthy == 1
    assert book.metrics.loop_lag_lost._value.get() == pytest.approx(3599.0)
    run(book, time, 16.0)
    assert not service.instances


def test_the_book_settles_once_everybody_has_had_the_time_to_come_back(make, time):
    book = make()
    told = []
    book.on_settled = lambda: told.append(time.now)
    run(book, time, 29.75)
    assert not book.outlet.settled
    run(book, time, 10.0)
    assert book.outlet.settled
    assert told == [1030.0]


def test_a_refused_command_changes_nothing_and_is_raised(make):
    book = make()
    service = enter(book, an_entry())
    number = service.number
    with pytest.raises(Problem):
        book.apply(lambda c, now: c.register("unknown", [an_entry(81)], now))
    assert service.number == number


async def test_what_is_deferred_is_bounded_by_the_instances_in_it(make):
    book = make(max_deferred=10)
    book.defer(lambda c, now: None, entries=9)
    book.defer(lambda c, now: None)
    with pytest.raises(Problem) as refused:
        book.defer(lambda c, now: None)
    assert (refused.value.code, refused.value.status) == ("limit_reached", 429)
    assert "10 may (--max-deferred)" in refused.value.detail
    # Once they are in the book, there is room again.
    done = asyncio.Event()
    running = asyncio.create_task(book.run())
    await asyncio.sleep(0)
    while book._deferred:
        await asyncio.sleep(0)
    book.defer(lambda c, now: done.set(), entries=10)
    await asyncio.wait_for(done.wait(), 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_is_deferred_is_done_in_order_and_a_refused_one_does_not_stop_the_others(make):
    book = make()
    done = []
    book.defer(lambda c, now: done.append(1))
    book.defer(lambda c, now: c.register("unknown", [an_entry()], now))
    running = asyncio.create_task(book.run())
    last = asyncio.Event()
    book.defer(lambda c, now: (done.append(2), last.set()))
    await asyncio.wait_for(last.wait(), 10)
    assert done == [1, 2]
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def test_what_happens_is_counted_by_its_reason(make, time):
    book = make()
    enter(book, an_entry(), an_entry(81))
    run(book, time, 31.0)
    counted = {
        sample.labels["stage"]: sample.value
        for metric in book.metrics.expirations.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    assert counted == {"unhealthy": 2, "removed": 2}


def test_two_lives_of_a_registry_have_different_names(make):
    assert make().boot != make().boot


def test_what_came_of_a_command_is_told_whole_before_it_is_answered(make):
    book = make()
    heard = []
    book.recorders.append(lambda event: heard.append(type(event).__name__))
    book.flushes.append(lambda: heard.append("flush"))
    enter(book, an_entry(1), an_entry(2, ip="10.0.0.2"))
    assert heard == ["Written", "flush", "Written", "flush"]
    heard.clear()
    book.apply(lambda c, now: (c.close_pods(["p", "q"], now), c.release("a", now)))
    assert heard == ["PodsMarked", "Written", "flush"]


def scraped(book, reason):
    return book.metrics.registry.get_sample_value("rollbook_entry_events_total", {"reason": reason})


def test_what_happens_to_entries_is_counted_by_its_reason(make, time):
    book = make()
    assert {scraped(book, reason.value) for reason in Reason} == {0.0}
    enter(book, an_entry(), an_entry(81))
    run(book, time, 15.0)
    assert (scraped(book, "registered"), scraped(book, "silent"), scraped(book, "expired")) == (2.0, 2.0, 0.0)
    run(book, time, 15.0)
    assert scraped(book, "expired") == 2.0


@pytest.mark.parametrize(("level", "told"), [("debug", ["lease", "registered"]), ("info", [])])
def test_what_is_usual_is_logged_only_for_who_wants_details(make, level, told):
    number = logging.getLevelNamesMapping()[level.upper()]
    with capture_logs() as logs:
        before = structlog.get_config()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))
        try:
            enter(make(), an_entry())
        finally:
            structlog.configure(wrapper_class=before["wrapper_class"])
    assert [entry["event"] for entry in logs] == told
