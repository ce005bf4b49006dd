"""The SDK's own small parts; what it does with a registry is in tests/unit/registry."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys

import pytest

from registrykit import ORDERS
from rollbook.addresses import session_url
from rollbook.balance import RoundRobin
from rollbook.client import Client
from rollbook.following import Following
from rollbook.model import Instance
from rollbook.problems import Problem
from rollbook.subscription import Subscription
from rollbook.view import Change, View


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("registry", "ws://registry:7848/session"),
        ("registry:1", "ws://registry:1/session"),
        ("rollbook://registry", "ws://registry:7848/session"),
        ("rollbooks://registry:1/", "wss://registry:1/session"),
        ("wss://registry", "wss://registry:7848/session"),
        ("[::1]:9", "ws://[::1]:9/session"),
    ],
)
def test_a_registrys_address_may_be_short(address, url):
    assert session_url(address) == url


@pytest.mark.parametrize(
    "address", ["", ":1", "http://registry", "registry:x", "registry:99999", "registry/path", "registry?a=1"]
)
def test_a_bad_address_is_refused_with_the_accepted_forms(address):
    with pytest.raises(Problem) as refused:
        session_url(address)
    assert refused.value.field == "registry"
    assert "host:port" in refused.value.accepted


def test_a_client_needs_an_address():
    with pytest.raises(Problem, match="at least one address"):
        Client()


def test_importing_the_vocabulary_does_not_load_aiohttp():
    code = "import sys, rollbook, rollbook.session; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def an_instance(key, **fields):
    return Instance(key=key, ip="10.0.0.1", port=80, **fields)


@pytest.fixture
def subscription():
    return Subscription(View(ORDERS), Following(), RoundRobin(), random.Random(1))


def test_picking_from_nobody_is_a_problem_that_names_the_service(subscription):
    subscription.view.restore([an_instance("a", healthy=False)], "r")
    with pytest.raises(Problem, match="public/DEFAULT_GROUP@@orders") as refused:
        subscription.pick()
    assert refused.value.code == "no_instance"
    subscription.view.restore([an_instance("a")], "r")
    assert subscription.pick().key == "a"


async def test_several_who_follow_one_list_all_see_its_last_state(subscription):
    seen = {"quick": [], "slow": []}
    quick_saw = asyncio.Event()
    slow_may_go_on = asyncio.Event()

    async def follow(name):
        async for instances in subscription:
            seen[name].append(len(instances))
            if name == "quick":
                quick_saw.set()
            elif len(seen["slow"]) == 1:
                await slow_may_go_on.wait()

    tasks = [asyncio.create_task(follow(name)) for name in seen]
    waiter = asyncio.create_task(subscription.wait_for(lambda instances: len(instances) == 1))
    await asyncio.wait_for(quick_saw.wait(), 5)
    quick_saw.clear()
    subscription.view.restore([an_instance("a")], "r")
    subscription._state.take(Change([], []))
    await asyncio.wait_for(quick_saw.wait(), 5)
    assert len(await asyncio.wait_for(waiter, 5)) == 1
    # The quick one has taken notice and waits again; the slow one looks only now.
    slow_may_go_on.set()
    async with asyncio.timeout(5):
        while len(seen["slow"]) < 2:
            await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert seen == {"quick": [0, 1], "slow": [0, 1]}
