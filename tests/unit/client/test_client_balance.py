"""Balancing: who gets the next request."""

from __future__ import annotations

import collections
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbook import balance
from rollbook.model import Instance
from rollbook.problems import Problem


def an_instance(name, **fields):
    return Instance(**{"key": name, "ip": name, "port": 80, **fields})


def test_only_healthy_enabled_instances_with_a_weight_get_traffic():
    good = an_instance("a")
    others = [an_instance("b", healthy=False), an_instance("c", enabled=False), an_instance("d", weight=0.0)]
    assert balance.eligible([*others, good]) == (good,)


@pytest.mark.parametrize("name", balance.STRATEGIES)
def test_of_none_none_is_chosen_and_of_one_that(name):
    strategy = balance.strategy(name, rng=random.Random(1))
    assert strategy.pick(()) is None
    assert strategy.pick((an_instance("a"),)).key == "a"
    assert strategy.pick(()) is None
    assert strategy.pick((an_instance("b"),)).key == "b"


def test_an_unknown_strategy_is_refused_with_those_there_are():
    with pytest.raises(Problem) as refused:
        balance.strategy("best")
    assert refused.value.field == "strategy"
    assert "round-robin" in refused.value.accepted
    assert next(iter(balance.STRATEGIES)) == balance.DEFAULT_STRATEGY


# --- smooth weighted round robin ------------------------------------------------------------------------

WEIGHTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 9), min_size=1)


def weighted(weights):
    return tuple(an_instance(k, weight=float(w)) for k, w in weights.items())


def picks(strategy, instances, count):
    return "".join(strategy.pick(instances).key for _ in range(count))


def test_weights_5_1_1_are_spread():
    instances = weighted({"a": 5, "b": 1, "c": 1})
    assert picks(balance.SmoothWeightedRoundRobin(), instances, 14) == "aaabaac" * 2


@given(WEIGHTS)
def test_smooth_weighted_round_robin_is_exactly_proportional(weights):
    chosen = picks(balance.SmoothWeightedRoundRobin(), weighted(weights), 3 * sum(weights.values()))
    assert collections.Counter(chosen) == {k: 3 * w for k, w in weights.items()}


@given(WEIGHTS, st.integers())
def test_at_every_moment_each_has_had_its_share_give_or_take_less_than_one(weights, seed):
    instances = weighted(weights)
    strategy = balance.SmoothWeightedRoundRobin(random.Random(seed))
    total = sum(weights.values())
    taken = collections.Counter()
    for n in range(1, 3 * total + 1):
        taken[strategy.pick(instances).key] += 1
        for key, weight in weights.items():
            # In whole numbers: taken - n * weight / total, times total.
            assert abs(taken[key] * total - n * weight) < total, (key, n)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.001, 10_000), min_size=1))
def test_shares_hold_for_any_weights(weights):
    instances = tuple(an_instance(k, weight=w) for k, w in weights.items())
    total = sum(weights.values())
    chosen = collections.Counter(picks(balance.SmoothWeightedRoundRobin(), instances, 200))
    for key, weight in weights.items():
        assert abs(chosen[key] - 200 * weight / total) < 1 + 1e-6


@given(st.lists(st.tuples(WEIGHTS, st.integers(0, 12)), max_size=30), st.integers())
def test_shares_hold_through_changes_of_the_list(phases, seed):
    """Whoever is there throughout gets the sum of its shares, however long that goes on."""
    strategy = balance.SmoothWeightedRoundRobin(random.Random(seed))
    share = collections.Counter()
    taken = collections.Counter()
    for others, count in phases:
        instances = weighted({**others, "x": 3})
        for _ in range(count):
            taken[strategy.pick(instances).key] += 1
            share["x"] += 3 / (sum(others.values()) + 3)
    assert abs(taken["x"] - share["x"]) < 2


def test_a_list_that_changes_at_every_pick_does_not_begin_with_the_same_instance_each_time():
    strategy = balance.SmoothWeightedRoundRobin()
    lists = [weighted({"a": 1, "b": 1, "c": 1, "d": weight}) for weight in (1, 2)]
    chosen = collections.Counter(strategy.pick(lists[n % 2]).key for n in range(300))
    # d's share is a quarter and two fifths by turns.
    assert abs(chosen["d"] - 97.5) < 2
    assert all(abs(chosen[key] - 67.5) < 2 for key in "abc")


def test_those_who_start_together_begin_with_different_instances():
    instances = weighted(dict.fromkeys("abcdefgh", 1))
    for name in balance.STRATEGIES:
        first = {balance.strategy(name, rng=random.Random(n)).pick(instances).key for n in range(100)}
        assert first == set("abcdefgh"), name


# --- the others -----------------------------------------------------------------------------------------


def test_round_robin_goes_on_after_a_change():
    strategy = balance.RoundRobin()
    a, b, c, d = (an_instance(n) for n in "abcd")
    assert picks(strategy, (c, a, b), 2) == "ab"
    assert picks(strategy, (a, d, c), 3) == "cda"
    assert strategy.pick(()) is None
    assert picks(strategy, (d, b, a), 4) == "bdab"


def test_random_follows_weights():
    strategy = balance.Random(random.Random(7))
    instances = weighted({"a": 9, "b": 1})
    chosen = collections.Counter(picks(strategy, instances, 1000))
    assert 850 < chosen["a"] < 950


def test_random_follows_the_weights_of_now():
    strategy = balance.Random(random.Random(7))
    picks(strategy, weighted({"a": 9, "b": 1}), 10)
    assert set(picks(strategy, weighted({"b": 1, "c": 0.001}), 20)) == {"b"}


class Top(random.Random):
    """As high as it gets."""

    def random(self):
        return 1 - 2**-53


def test_rounding_never_leads_past_the_last():
    instances = tuple(an_instance(str(n), weight=0.1) for n in range(10))
    assert balance.Random(Top()).pick(instances) is instances[-1]
