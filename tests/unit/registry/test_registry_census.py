"""The census: who is let in, and whose patience is at its end."""

from __future__ import annotations

import collections

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rollbook_registry.connections import Census, Closing, Door, Limits, Refusal

HTTP, SESSION = Door.HTTP, Door.SESSION


@pytest.fixture
def make():
    def make(**limits):
        return Census(Limits(**{"connections": 6, "sessions": 4, "per_address": 0, "spare": 2, **limits}))

    return make


def enter(census, who, door=HTTP, *, address="a", now=0.0):
    return census.admit(who, door=door, address=address, now=now)


def due(census, now):
    return [(who, why.value) for who, why in census.due(now)]


def test_plain_http_cannot_take_the_places_of_sessions(make):
    census = make()
    assert [enter(census, n) for n in range(2)] == [(True, None)] * 2
    assert enter(census, 2) == (True, Refusal.HTTP_FULL)
    assert [enter(census, n, SESSION) for n in range(10, 14)] == [(True, None)] * 4
    assert enter(census, 14, SESSION) == (True, Refusal.REGISTRY_FULL)
    assert (census.counts, census.refused) == ({HTTP: 2, SESSION: 4}, 2)


def test_sessions_may_have_the_places_that_plain_http_leaves(make):
    census = make()
    assert [enter(census, n, SESSION) for n in range(6)] == [(True, None)] * 6
    assert enter(census, 6) == (True, Refusal.REGISTRY_FULL)


def test_a_session_that_came_in_by_the_http_port_makes_room_there(make):
    census = make()
    enter(census, 1)
    enter(census, 2)
    census.is_session(1)
    census.is_session(1)
    assert census.counts == {HTTP: 1, SESSION: 1}
    assert enter(census, 3) == (True, None)
    census.leave(1)
    assert census.counts == {HTTP: 2, SESSION: 0}


def test_whoever_leaves_makes_room(make):
    census = make()
    for n in range(2):
        enter(census, n)
    assert enter(census, 2)[1] is Refusal.HTTP_FULL
    census.leave(0)
    assert enter(census, 3) == (True, None)


def test_beyond_the_spare_places_nobody_is_even_told(make):
    census = make()
    enter(census, 0)
    enter(census, 1)
    assert [enter(census, n) for n in (2, 3, 4)] == [
        (True, Refusal.HTTP_FULL), (True, Refusal.HTTP_FULL), (False, Refusal.HTTP_FULL),
    ]  # fmt: skip
    assert len(census) == 4
    census.leave(2)
    assert enter(census, 5) == (True, Refusal.HTTP_FULL)


def test_an_address_has_its_own_limit_and_others_are_not_touched_by_it(make):
    census = make(per_address=1)
    assert enter(census, 1, address="a") == (True, None)
    assert enter(census, 2, address="a") == (True, Refusal.ADDRESS_FULL)
    assert enter(census, 3, address="b") == (True, None)
    census.leave(1)
    census.leave(2)
    assert enter(census, 4, SESSION, address="a") == (True, None)


def test_nothing_said_and_a_head_not_completed_end_after_the_same_time(make):
    census = make(request=10.0)
    enter(census, "silent", now=0.0)
    enter(census, "slow", now=0.0)
    census.began("slow", 9.0)
    enter(census, "quick", SESSION, now=0.0)
    census.began("quick", 1.0)
    census.completed("quick")
    enter(census, "at once", now=0.0)
    census.completed("at once")
    assert due(census, 9.9) == []
    assert due(census, 10.0) == [("silent", "never_asked")]
    assert due(census, 18.9) == []
    assert due(census, 19.0) == [("slow", "slow_head")]
    assert due(census, 1000.0) == []


def test_what_is_not_taken_in_time_ends_and_what_is_taken_does_not(make):
    census = make(write=30.0)
    for who, at in (("a", 0.0), ("b", 1.0)):
        enter(census, who)
        census.began(who, 0.0)
        census.completed(who)
        census.left_unread(who, at)
    census.took("a")
    census.left_unread("a", 20.0)
    assert due(census, 31.0) == [("b", "not_reading")]
    census.took("a")
    assert due(census, 100.0) == []


def test_who_is_not_let_in_has_little_time_to_ask(make):
    census = make(refused=1.0)
    enter(census, 0)
    enter(census, 1)
    enter(census, 2, now=5.0)
    enter(census, 3, now=5.0)
    census.began(3, 5.5)
    census.completed(3)
    assert due(census, 6.0) == [(2, Closing.REFUSED.value)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["admit", "began", "completed", "unread", "took", "session", "leave", "due"]),
            st.integers(0, 9),
            st.sampled_from(Door),
        ),
        max_size=200,
    )
)
def test_whatever_happens_the_counts_are_those_of_who_is_there(steps):
    census = Census(Limits(connections=5, sessions=3, per_address=2, spare=1))
    inside, outside = {}, set()
    told = {
        "began": census.began,
        "completed": lambda who, _: census.completed(who),
        "unread": census.left_unread,
        "took": lambda who, _: census.took(who),
    }
    for now, (step, who, door) in enumerate(steps):
        there = who in inside or who in outside
        if step == "admit" and not there:
            stays, refusal = census.admit(who, door=door, address=str(who % 3), now=float(now))
            assert stays or refusal
            if refusal is None:
                inside[who] = door
            elif stays:
                outside.add(who)
        elif step in told and there:
            told[step](who, float(now))
        elif step == "session" and there:
            census.is_session(who)
            inside.update({who: SESSION} if who in inside else {})
        elif step == "leave":
            census.leave(who)
            inside.pop(who, None)
            outside.discard(who)
        elif step == "due":
            assert {w for w, _ in census.due(float(now))} <= inside.keys() | outside
        counted = collections.Counter(inside.values())
        assert census.counts == {HTTP: counted[HTTP], SESSION: counted[SESSION]}
        assert census.refused == len(outside) <= 1
        assert len(inside) <= 5
        assert counted[HTTP] <= 2
    for who in range(10):
        census.leave(who)
    assert (len(census), census.refused, sum(census.counts.values())) == (0, 0, 0)
    assert list(census.due(1e9)) == []
    assert census._by_address == {}
