from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from rollbook_sidecar import health, registration
from rollbook_sidecar.settings import Settings


def judged(outcomes, **options):
    judgement = health.Judgement(**options)
    return [(judgement.take(ok=ok), judgement.alive, judgement.pause) for ok in outcomes]


def test_nothing_is_alive_before_its_first_success_and_looked_at_every_second():
    assert health.Judgement().alive is False
    assert health.Judgement().pause == 1.0
    assert judged([False, False]) == [(False, False, 1.0), (False, False, 1.0)]


def test_the_first_success_makes_it_alive_at_once():
    assert judged([True]) == [(True, True, 5.0)]
    assert judged([False, False, False, True])[-1] == (True, True, 5.0)


def test_one_failure_is_a_hiccup_and_two_in_a_row_are_not():
    assert [alive for _, alive, _ in judged([True, False, True, False, True])] == [True] * 5
    assert [alive for _, alive, _ in judged([True, False, False])] == [True, True, False]


def test_a_change_is_told_once():
    assert [changed for changed, _, _ in judged([True, True, False, False, False, True])] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_what_is_down_is_looked_at_every_second_again():
    assert judged([True, False, False])[-1] == (True, False, 1.0)


def test_threshold_and_interval_can_be_set():
    assert [alive for _, alive, _ in judged([True, False], failures=1)] == [True, False]
    assert judged([True], interval=0.5)[-1][2] == 0.5
    assert judged([False], interval=0.5)[-1][2] == 0.5


class EnoughError(Exception):
    pass


async def watched(outcomes, *, timeout=1.0):
    """Run the watch through outcomes; return what it told and the pauses it made."""
    told, pauses = [], []
    left = iter(outcomes)

    async def check():
        outcome = next(left)
        if outcome == "hangs":
            await asyncio.Event().wait()
        return outcome

    async def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == len(outcomes):
            raise EnoughError

    target = health.Target(check, ("ref",), "a check")
    with pytest.raises(EnoughError):
        await health.watch(
            target,
            health.Judgement(),
            lambda refs, alive: told.append((refs, alive)),
            timeout=timeout,
            sleep=sleep,
        )
    return told, pauses


async def test_the_watch_tells_each_change_with_the_entries_concerned():
    told, pauses = await watched(["refused", "", "refused", "refused", ""])
    assert told == [(("ref",), True), (("ref",), False), (("ref",), True)]
    assert pauses == [1.0, 5.0, 5.0, 1.0, 5.0]


async def test_a_check_that_hangs_is_a_failure():
    told, _ = await watched(["", "hangs", "hangs"], timeout=0.01)
    assert told == [(("ref",), True), (("ref",), False)]


async def test_a_check_that_dies_is_a_failure():
    def check():
        raise ValueError("unheard of")

    ended = asyncio.Event()
    judgement = health.Judgement(failures=1)
    judgement.take(ok=True)

    async def sleep(_):
        ended.set()
        await asyncio.Event().wait()

    told = []
    target = health.Target(check, ("ref",), "a check")
    watch = asyncio.create_task(
        health.watch(target, judgement, lambda _, alive: told.append(alive), timeout=1.0, sleep=sleep)
    )
    await ended.wait()
    watch.cancel()
    assert told == [False]


async def test_tcp_succeeds_if_somebody_accepts(free_port):
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        assert await health.check_tcp("127.0.0.1", port) == ""
    assert await health.check_tcp("127.0.0.1", free_port()) != ""


@pytest.fixture
async def application():
    statuses = {"/ok": 200, "/moved": 302, "/missing": 404, "/broken": 500}

    async def answer(request):
        status = statuses[request.path]
        return web.Response(status=status, headers={"Location": "/broken"} if status == 302 else {})

    app = web.Application()
    app.router.add_get("/{path}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize(
    ("path", "expected"), [("/ok", ""), ("/moved", ""), ("/missing", "status 404"), ("/broken", "status 500")]
)
async def test_http_succeeds_from_200_to_399_and_follows_nothing(application, path, expected):
    async with health.http_session() as http:
        assert await health.check_http(http, f"http://127.0.0.1:{application}{path}") == expected


async def test_http_fails_where_nobody_listens(free_port):
    async with health.http_session() as http:
        assert await health.check_http(http, f"http://127.0.0.1:{free_port()}/") != ""


def targets(**fields):
    settings = Settings(registry=("r",), service="orders", **fields)
    entries = registration.entries(settings, ip=settings.ip, host="h")
    return [(t.shown, [ref.port for ref in t.refs]) for t in health.targets(settings, entries, http=None)]


def test_tcp_checks_each_port_by_itself_at_the_registered_address():
    assert targets(ports="a=80,b=81", ip="10.0.0.1", health_check="tcp") == [
        ("tcp 10.0.0.1 port 80", [80]),
        ("tcp 10.0.0.1 port 81", [81]),
    ]


def test_http_checks_the_port_named_http_for_all():
    assert targets(ports="grpc=81,http=80", ip="10.0.0.1", health_check="http:/ready") == [
        ("http://10.0.0.1:80/ready", [81, 80])
    ]


def test_http_checks_the_first_port_if_none_is_named_so():
    assert targets(ports="81", ip="fd00::1", health_check="http:/ready") == [
        ("http://[fd00::1]:81/ready", [81])
    ]


def test_none_checks_nothing():
    assert targets(ports="80", ip="10.0.0.1", health_check="none") == []
