"""The checker: who is asked, how many at a time, and which verdicts are told."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import time

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ports import free_port
from rollbook.model import Entry
from rollbook_registry.catalog.definitions import Check
from rollbook_registry.checks import Answer, Checker, Finding, Probes, Reach, Reason, Target
from rollbook_registry.metrics import CheckMeter
from serverkit import until

PASSED = Answer(Finding.PASSED)
REFUSED = Answer(Finding.REFUSED, "refused")
DEFAULT = Check(interval=10.0, timeout=1.0, failures=2, successes=1)


def entry(n, **fields):
    return Entry(**{"service": "db", "ip": "10.0.0.1", "port": n, "ephemeral": False, **fields})


async def soon(condition):
    """Let the loop turn until something holds; nothing that is awaited here takes time."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail(f"never at line {condition.__code__.co_firstlineno}")


class Counted:
    """A meter that remembers."""

    def __init__(self):
        self.late = []
        self.found = collections.Counter()
        self.skipped = 0

    def began(self, late):
        self.late.append(late)

    def ended(self, kind, finding, seconds):
        assert seconds >= 0
        self.found[kind, finding] += 1

    def missed(self, turns):
        self.skipped += turns


class House:
    """A checker whose clock and answers are made by hand."""

    def __init__(self, **options):
        self.now = 100.0
        self.told = []
        self.waiting: dict[Target, asyncio.Future] = {}
        self.asked = []
        self.cancelled = []
        self.most = 0
        self.meter = Counted()
        defaults = {
            "default": DEFAULT, "ask": self.ask, "report": self.told.extend, "meter": self.meter,
            "clock": lambda: self.now, "rng": lambda: 0.0, "first_rate": math.inf,
        }  # fmt: skip
        self.checker = Checker(**{**defaults, **options})

    async def ask(self, target, *, timeout):
        self.asked.append((target.port, timeout))
        assert target not in self.waiting, "asked twice at a time"
        self.waiting[target] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.waiting))
        try:
            return await self.waiting[target]
        except asyncio.CancelledError:
            self.cancelled.append(target.port)
            raise
        finally:
            del self.waiting[target]

    def define(self, n, check=None, **fields):
        made = entry(n, **fields)
        self.checker.define(made.ref, made, check)
        return made.ref

    async def begin(self, *expected):
        """Let what is due begin; it is this."""
        self.checker.turn()
        await soon(lambda: len(self.waiting) == self.checker.in_flight)
        assert sorted(target.port for target in self.waiting) == sorted(expected)

    async def answer(self, answer=PASSED, port=None):
        """Answer all that wait, or the one with this port; return what is told then."""
        left = self.checker.in_flight
        for target, future in list(self.waiting.items()):
            if port in {None, target.port}:
                left -= 1
                if isinstance(answer, BaseException):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        await soon(lambda: self.checker.in_flight == left)
        before = len(self.told)
        self.checker.turn()
        return [(v.ref.port, v.alive, v.reason) for v in self.told[before:]]

    async def check(self, answer=PASSED, *, after=10.0):
        """One check of the only instance, ``after`` seconds."""
        self.now += after
        self.checker.turn()
        await soon(lambda: self.waiting)
        return await self.answer(answer)

    async def close(self):
        run = asyncio.create_task(self.checker.run())
        await asyncio.sleep(0)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        assert self.checker.in_flight == 0
        assert not self.waiting


@pytest.fixture
async def house():
    made = House()
    yield made
    await made.close()


async def test_the_first_verdict_and_each_change_are_told_and_nothing_else(house):
    house.define(1)
    assert await house.check(PASSED, after=0) == [(1, True, Reason.FIRST_SUCCESS)]
    assert await house.check(PASSED) == []
    assert await house.check(REFUSED) == []
    assert await house.check(REFUSED) == [(1, False, Reason.FAILED)]
    assert house.told[-1].detail == "refused"
    assert house.told[-1].finding is Finding.REFUSED
    assert await house.check(REFUSED) == []
    assert await house.check(PASSED) == [(1, True, Reason.RECOVERED)]
    assert house.told[-1].detail == ""


async def test_what_has_no_check_of_its_own_is_checked_by_default_and_at_its_own_port(house):
    house.define(1)
    house.define(2, Check(type="http", path="/up", port=9000, timeout=0.5))
    house.checker.turn()
    await soon(lambda: len(house.waiting) == 2)
    assert set(house.waiting) == {
        Target("tcp", "10.0.0.1", 1),
        Target("http", "10.0.0.1", 9000, "/up"),
    }
    assert sorted(house.asked) == [(1, 1.0), (9000, 0.5)]


async def test_none_counts_as_alive_and_is_never_asked(house):
    ref = house.define(1, Check(type="none"))
    assert house.checker.turn() is None
    assert [(v.ref, v.alive, v.reason) for v in house.told] == [(ref, True, Reason.UNCHECKED)]
    assert (house.asked, house.checker.checked) == ([], 0)
    house.define(1, Check())
    assert await house.check(REFUSED, after=0) == [(1, False, Reason.FIRST_FAILURE)]
    house.define(1, Check(type="none"))
    assert await house.answer() == [(1, True, Reason.UNCHECKED)]
    assert house.checker.turn() is None


async def test_another_question_is_asked_at_once_and_its_first_answer_decides(house):
    house.define(1)
    await house.check(PASSED, after=0)
    house.define(1, Check(port=7, failures=100))
    assert await house.check(REFUSED, after=0) == [(1, False, Reason.FIRST_FAILURE)]
    assert [port for port, _ in house.asked] == [1, 7]


async def test_an_answer_to_a_question_that_was_changed_does_not_count(house):
    house.define(1)
    await house.begin(1)
    house.define(1, Check(port=7))
    await soon(lambda: house.cancelled == [1])
    await house.begin(7)
    assert await house.answer(REFUSED) == [(1, False, Reason.FIRST_FAILURE)]
    assert house.meter.found == {("tcp", Finding.REFUSED): 1}


async def test_an_answer_that_comes_although_its_check_was_stopped_does_not_count():
    stopped = asyncio.Event()

    async def stubborn(_target, *, timeout):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.set()
        return PASSED

    house = House(ask=stubborn)
    ref = house.define(1)
    house.checker.turn()
    await soon(lambda: house.checker.in_flight == 1)
    await asyncio.sleep(0)
    house.checker.undefine(ref)
    await stopped.wait()
    await soon(lambda: house.checker.in_flight == 0)
    house.checker.turn()
    assert (house.told, dict(house.meter.found)) == ([], {})
    await house.close()


async def test_defining_the_same_again_changes_nothing(house):
    house.define(1)
    await house.begin(1)
    for _ in range(3):
        house.define(1)
        house.define(1, msgspec.structs.replace(DEFAULT), weight=3.0)
    await house.begin(1)
    assert await house.answer() == [(1, True, Reason.FIRST_SUCCESS)]
    assert len(house.asked) == 1
    assert house.checker.turn() == 10.0


async def test_other_thresholds_count_what_was_heard_already(house):
    house.define(1, Check(failures=9))
    await house.check(PASSED, after=0)
    for _ in range(3):
        assert await house.check(REFUSED) == []
    house.define(1, Check(failures=4))
    assert house.checker.account(house.told[0].ref).alive is True
    assert await house.check(REFUSED) == [(1, False, Reason.FAILED)]


async def test_a_shorter_interval_holds_at_once(house):
    house.define(1, Check(interval=3600.0))
    await house.check(PASSED, after=0)
    assert house.checker.turn() == 3600.0
    house.define(1, Check(interval=2.0))
    assert house.checker.turn() == 2.0


async def test_what_is_undefined_is_asked_no_more_and_nothing_is_said_about_it(house):
    refs = [house.define(n) for n in (1, 2)]
    await house.begin(1, 2)
    house.checker.undefine(refs[0])
    await soon(lambda: house.cancelled == [1])
    # The verdict about the other is there already, and not yet handed on.
    house.waiting[Target("tcp", "10.0.0.1", 2)].set_result(PASSED)
    await soon(lambda: house.checker.in_flight == 0)
    house.checker.undefine(refs[1])
    house.checker.undefine(refs[1])
    assert house.checker.turn() is None
    assert house.told == []
    assert house.checker.account(refs[1]) is None


async def test_no_more_are_under_way_than_may_be_and_who_waits_longest_comes_next():
    house = House(concurrency=7)
    for n in range(1, 501):
        house.define(n)
    order = []
    house.checker.turn()
    while len(order) < 500:
        await soon(lambda: len(house.waiting) == min(7, 500 - len(order)))
        assert house.checker.in_flight == len(house.waiting)
        if len(order) < 493:
            assert house.checker.turn() is None, "without room there is nothing to wait for but an end"
        order.append(next(iter(house.waiting)).port)
        await house.answer(port=order[-1])
    assert house.most == 7
    assert order == list(range(1, 501))
    assert len(house.told) == 500
    await house.close()


async def test_who_begins_late_is_counted_and_not_judged():
    house = House(concurrency=1)
    for n in (1, 2):
        house.define(n)
    await house.begin(1)
    assert await house.answer() == [(1, True, Reason.FIRST_SUCCESS)]
    await house.begin(2)
    house.now += 34.0
    assert await house.answer() == [(2, True, Reason.FIRST_SUCCESS)]
    await house.begin(1)
    assert house.meter.late[-1] == pytest.approx(24.0)
    assert await house.answer() == []
    assert house.meter.skipped == 2
    assert all(verdict.alive for verdict in house.told)


@pytest.mark.parametrize("finding", [Finding.OWN_FAULT, Finding.OWN_LAG, Finding.NO_NAME_SERVER])
async def test_what_is_no_fault_of_the_instance_is_counted_and_not_judged(house, finding):
    house.define(1, Check(failures=1))
    assert await house.check(Answer(finding, "why"), after=0) == []
    assert await house.check(PASSED) == [(1, True, Reason.FIRST_SUCCESS)]
    assert await house.check(Answer(finding, "why")) == []
    assert house.meter.found["tcp", finding] == 2
    account = house.checker.account(house.told[0].ref)
    assert (account.alive, account.reason, account.last) == (
        True,
        Reason.FIRST_SUCCESS,
        Answer(finding, "why"),
    )


async def test_a_check_that_breaks_is_a_fault_of_ours_and_the_next_is_made(house):
    house.define(1)
    assert await house.check(ZeroDivisionError("oh"), after=0) == []
    assert house.meter.found == {("tcp", Finding.OWN_FAULT): 1}
    assert await house.check(PASSED) == [(1, True, Reason.FIRST_SUCCESS)]


async def test_verdicts_that_were_not_taken_are_told_again():
    told = []

    def report(verdicts):
        told.append([v.ref.port for v in verdicts])
        if len(told) == 1:
            raise RuntimeError("not now")

    house = House(report=report)
    for n in (1, 2):
        house.define(n)
    await house.begin(1, 2)
    await house.answer(port=1)
    await house.answer(port=2)
    assert told == [[1], [1, 2]]
    house.checker.turn()
    assert told == [[1], [1, 2]]
    await house.close()


async def test_verdicts_that_come_together_are_told_together(house):
    for n in range(1, 51):
        house.define(n)
    calls = []
    house.checker._report = calls.append
    await house.begin(*range(1, 51))
    await house.answer()
    assert [len(call) for call in calls] == [50]


async def test_only_what_this_replica_owns_is_checked_and_that_may_change():
    mine = {1, 2}
    house = House(owns=lambda ref: ref.port in mine)
    refs = {n: house.define(n) for n in (1, 2, 3)}
    await house.begin(1, 2)
    await house.answer(REFUSED, port=1)
    mine.symmetric_difference_update({1, 2, 3})
    assert house.checker.reassign() == [refs[1], refs[2]]
    assert house.checker.reassign() == []
    await soon(lambda: house.cancelled == [2])
    assert house.checker.account(refs[1]) is None
    await house.begin(3)
    assert await house.answer() == [(3, True, Reason.FIRST_SUCCESS)]
    # What comes back is judged afresh: its own last verdict is old.
    mine.add(1)
    assert house.checker.reassign() == []
    await house.begin(1)
    assert await house.answer() == [(1, True, Reason.FIRST_SUCCESS)]
    await house.close()


async def test_what_the_book_knows_from_before_is_not_overruled_by_one_check():
    book = {1: True, 2: False}
    house = House(known=lambda ref: book.get(ref.port))
    for n in (1, 2, 3):
        house.define(n)
    await house.begin(1, 2, 3)
    assert await house.answer(REFUSED) == [
        (2, False, Reason.CONFIRMED),
        (3, False, Reason.FIRST_FAILURE),
    ]
    house.now += 10.0
    await house.begin(1, 2, 3)
    assert await house.answer(REFUSED) == [(1, False, Reason.FAILED)]
    # Of another question the book knows nothing.
    house.define(1, Check(port=8))
    await house.begin(8)
    assert await house.answer(REFUSED) == [(1, False, Reason.FIRST_FAILURE)]
    await house.close()


async def test_whoever_asks_is_told_what_is_known(house):
    ref = house.define(1)
    assert house.checker.account(ref)._asdict() == {
        "check": DEFAULT, "target": Target("tcp", "10.0.0.1", 1), "alive": None, "reason": None,
        "against": 0, "last": None, "ago": 0.0,
    }  # fmt: skip
    await house.check(PASSED, after=0)
    await house.check(REFUSED)
    house.now += 4.0
    account = house.checker.account(ref)
    assert (account.alive, account.against, account.last) == (True, 1, REFUSED)
    assert (account.reason, account.ago) == (Reason.FIRST_SUCCESS, 4.0)


# On real sockets


@contextlib.asynccontextmanager
async def running(report, *, reach=("127.0.0.0/8",), **options):
    with Probes(Reach(allow=reach)) as probes:
        defaults = {
            "default": Check(interval=0.05, timeout=5.0, failures=2), "ask": probes.ask, "report": report,
            "meter": Counted(), "clock": time.monotonic, "rng": lambda: 0.5,
        }  # fmt: skip
        checker = Checker(**{**defaults, **options})
        run = asyncio.create_task(checker.run())
        yield checker
        assert not run.done(), run
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        assert checker.in_flight == 0


async def test_an_instance_that_comes_and_goes_is_followed():
    told = []
    async with running(told.extend) as checker:
        port = free_port()
        made = entry(port, ip="127.0.0.1")
        checker.define(made.ref, made, None)
        await until(lambda: told)
        server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", port)
        await until(lambda: len(told) == 2)
        server.close()
        await until(lambda: len(told) == 3)
    assert [(v.alive, v.reason) for v in told] == [
        (False, Reason.FIRST_FAILURE),
        (True, Reason.RECOVERED),
        (False, Reason.FAILED),
    ]


async def test_hundreds_of_silent_instances_hold_no_more_connections_than_may_be():
    told, opened = [], []
    most = 0
    silence = asyncio.Event()

    async def serve(reader, writer):
        nonlocal most
        opened.append(writer)
        most = max(most, checker.in_flight)
        await silence.wait()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024) as server:
        port = server.sockets[0].getsockname()[1]
        check = Check(type="http", port=port, interval=60.0, timeout=30.0)
        async with running(told.extend, concurrency=25) as checker:
            for n in range(300):
                made = entry(n + 1, ip="127.0.0.1")
                checker.define(made.ref, made, check)
            await until(lambda: len(opened) == 25)
            assert checker.in_flight == 25
            assert told == []
            # What is undefined makes room for the next.
            checker.undefine(entry(1, ip="127.0.0.1").ref)
            await until(lambda: len(opened) == 26)
            assert checker.in_flight == 25
            silence.set()
            await until(lambda: len(told) == 299)
            assert all(v.alive for v in told)
            assert len(opened) == 300
            assert most == 25


async def test_what_may_not_be_reached_is_down_and_says_why():
    told = []
    async with running(told.extend, reach=()) as checker:
        made = entry(80, ip="169.254.169.254")
        checker.define(made.ref, made, None)
        await until(lambda: told)
    assert (told[0].alive, told[0].finding) == (False, Finding.FORBIDDEN)
    assert "169.254.0.0/16" in told[0].detail


def test_checks_are_counted_under_stable_names_without_instances():
    registry = CollectorRegistry()
    meter = CheckMeter(registry)
    meter.began(0.3)
    for finding in (Finding.PASSED, Finding.PASSED, Finding.TIMED_OUT):
        meter.ended("tcp", finding, 0.25)
    meter.missed(2)
    meter.in_flight.set(4)
    meter.instances.set(7)
    lines = set(generate_latest(registry).decode().splitlines())
    assert lines >= {
        'rollbook_checks_total{result="passed",type="tcp"} 2.0',
        'rollbook_checks_total{result="timed_out",type="tcp"} 1.0',
        'rollbook_check_seconds_count{type="tcp"} 3.0',
        "rollbook_check_late_seconds_sum 0.3",
        "rollbook_checks_missed_total 2.0",
        "rollbook_checks_in_flight 4.0",
        "rollbook_checked_instances 7.0",
    }
