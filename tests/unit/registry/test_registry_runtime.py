"""The plan for the collector, and the watch over the loop."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from rollbook_registry.metrics import RuntimeMeter
from rollbook_registry.runtime import Collector, Plan, Watch
from rollbook_registry.runtime.plan import PATIENCE
from serverkit import until


class Clock:
    """A plan, and a process that is as busy as a test says."""

    def __init__(self, interval) -> None:
        self.now = self.cpu = 0.0
        self.plan = Plan(0.0, 0.0, interval=interval)

    def due(self, seconds, *, busy=0.0):
        self.now += seconds
        self.cpu += seconds * busy
        return self.plan.due(self.now, self.cpu)


def test_everything_is_looked_at_now_and_then_in_a_quiet_moment():
    clock = Clock(interval=3600.0)
    assert not clock.due(3500.0)
    assert not clock.due(200.0, busy=0.8)
    assert clock.due(2.0, busy=0.1)
    assert not clock.due(2.0)
    assert not clock.due(3590.0)
    assert clock.due(10.0)


def test_a_process_that_is_never_idle_is_not_spared_for_ever():
    clock = Clock(interval=100.0)
    looks = [clock.due(1.0, busy=1.0) for _ in range(int(100 * PATIENCE))]
    assert looks == [False] * (len(looks) - 1) + [True]


def test_whoever_wants_no_look_at_everything_has_none():
    clock = Clock(interval=0.0)
    assert not any(clock.due(10_000.0) for _ in range(100))


@pytest.fixture
def metrics():
    return CollectorRegistry()


@pytest.fixture
def meter(metrics):
    return RuntimeMeter(metrics)


class Ring:
    """A cycle."""

    def __init__(self) -> None:
        self.itself = self


def test_python_looks_at_everything_no_more_by_itself_and_as_before_afterwards(meter):
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with Collector(meter, interval=0.0):
        assert gc.isenabled()
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] > 10**9
        assert gc.get_freeze_count() > frozen
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    assert gc.callbacks == [c for c in gc.callbacks if "Collector" not in repr(c)]


def test_however_much_grows_python_does_not_look_at_everything_by_itself(meter, metrics):
    with Collector(meter, interval=0.0) as collector:
        kept = [[] for _ in range(200_000)]
    looks = [
        metrics.get_sample_value("rollbook_collector_pause_seconds_count", {"generation": str(n)})
        for n in range(3)
    ]
    assert len(kept) == 200_000
    assert looks[0] >= 100
    assert looks[1] >= 10
    assert looks[2] == 0
    assert collector.paused > 0


def test_cycles_are_found_while_they_are_young_and_counted(meter, metrics):
    with Collector(meter, interval=0.0):
        for _ in range(50_000):
            Ring()
    assert metrics.get_sample_value("rollbook_collector_found_total") > 10_000


def test_cycles_of_what_lived_long_are_found_when_everything_is_looked_at(meter):
    gone = []
    with Collector(meter, interval=1e-9) as collector:
        rings = [Ring() for _ in range(10)]
        for ring in rings:
            ring.told = type("Told", (), {"__del__": lambda self: gone.append(1)})()
        gc.collect(1)
        gc.collect(1)
        del ring
        rings.clear()
        gc.collect(1)
        assert not gone
        collector.look()
        assert len(gone) == 10


def hold(seconds):
    """Hold the loop, as a step of the registry's that takes too long."""
    from rollbook_registry.expiry import wheel  # noqa: PLC0415  # whose file it is to look like

    code = "import time\ndef turn():\n end = time.monotonic() + seconds\n while time.monotonic() < end: pass"
    space = {"seconds": seconds}
    exec(compile(code, wheel.__file__, "exec"), space)
    space["turn"]()


def test_a_step_that_holds_the_loop_is_counted_and_named():
    # In a process of its own: the timer of the kernel's is the tests' own here.
    code = textwrap.dedent(
        f"""
        import asyncio, sys
        sys.path[:0] = {sys.path!r}
        from prometheus_client import CollectorRegistry
        from rollbook import logs
        from rollbook_registry.metrics import RuntimeMeter
        from rollbook_registry.runtime import watch
        from test_registry_runtime import hold

        async def main():
            registry = CollectorRegistry()
            # Who is not let run by the system is late too; all are told, the one that is meant among them.
            watch.QUIET = 0.0
            with watch.Watch(RuntimeMeter(registry), slow=0.05):
                for _ in range(5):
                    await asyncio.sleep(0.1)
                    hold(0.5)
                await asyncio.sleep(0.1)
            assert registry.get_sample_value("rollbook_loop_held_total") >= 5
            assert registry.get_sample_value("rollbook_loop_lateness_seconds_count") >= 5
        logs.set_up("info", "json")
        asyncio.run(main())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])},  # noqa: PTH120
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in done.stderr.splitlines() if "loop_held" in line]
    assert any("expiry/wheel.py:" in step and " turn" in step for step in steps), steps


def test_it_is_told_once_a_minute_with_how_often_it_was_not(meter, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(meter, slow=0.1)
    with capture_logs() as logs:
        for seconds in (0.0, 1.0, 58.0, 1.0, 59.0, 1.0):
            now[0] += seconds
            watch._tell(0.3, cpu=0.2, collector=0.1)
    assert [(e["event"], e["untold"]) for e in logs] == [("loop_held", 0), ("loop_held", 2), ("loop_held", 1)]
    assert logs[0] | {"seconds": 0.3, "cpu": 0.2, "collector": 0.1, "step": "unknown"} == logs[0]


async def test_the_watch_looks_again_and_again_and_leaves_no_timer_behind(meter, metrics, monkeypatch):
    wound, looks = [], []
    monkeypatch.setattr(signal, "setitimer", lambda which, seconds: wound.append(seconds))
    monkeypatch.setattr(signal, "signal", lambda number, handler: "before")
    monkeypatch.setattr(signal, "siginterrupt", lambda number, flag: None)
    with Watch(meter, slow=0.1, each=lambda: looks.append(1)):
        await until(lambda: len(looks) >= 3)
    assert wound[:-1] == [pytest.approx(0.15)] * (len(wound) - 1)
    assert wound[-1] == 0
    assert metrics.get_sample_value("rollbook_loop_lateness_seconds_count") >= 2
    looked = len(looks)
    await asyncio.sleep(0)
    assert len(looks) == looked


def test_what_takes_the_place_of_the_old_is_looked_at_while_it_is_little(meter, metrics):
    kept = [[] for _ in range(1000)]

    def looks():
        return metrics.get_sample_value("rollbook_collector_pause_seconds_count", {"generation": "0"})

    with Collector(meter, interval=0.0) as collector:
        collector.look()
        before = looks()
        for n in range(50_000):
            kept[n % 1000] = []
        assert looks() <= before + 2  # Python sees no growth
        young = len(gc.get_objects(0))
        collector.look()
        assert len(gc.get_objects(0)) < young
        for _ in range(20):
            collector.look()
    middle = metrics.get_sample_value("rollbook_collector_pause_seconds_count", {"generation": "1"})
    assert middle >= 1
