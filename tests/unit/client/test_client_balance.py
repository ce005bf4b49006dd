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
    assert balance.eligible([*others, good]) == [good]


@pytest.mark.parametrize("name", balance.STRATEGIES)
def test_of_none_none_is_chosen_and_of_one_that(name):
    strategy = balance.strategy(name, rng=random.Random(1))
    assert strategy.pick([]) is None
    assert strategy.pick([an_instance("a")]).key == "a"


def test_an_unknown_strategy_is_refused_with_those_there_are():
    with pytest.raises(Problem) as refused:
        balance.strategy("best")
    assert refused.value.field == "strategy"
    assert "round-robin" in refused.value.accepted
    assert next(iter(balance.STRATEGIES)) == balance.DEFAULT_STRATEGY


def test_weights_5_1_1_give_a_a_b_a_c_a_a():
    strategy = balance.strategy()
    instances = [an_instance("a", weight=5.0), an_instance("b"), an_instance("c")]
    assert "".join(strategy.pick(instances).key for _ in range(7)) == "aabacaa"


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1))
def test_smooth_weighted_round_robin_is_exactly_proportional(weights):
    instances = [an_instance(k, weight=float(w)) for k, w in weights.items()]
    strategy = balance.SmoothWeightedRoundRobin()
    chosen = collections.Counter(strategy.pick(instances).key for _ in range(3 * sum(weights.values())))
    assert chosen == {k: 3 * w for k, w in weights.items()}


def test_round_robin_goes_on_after_a_change():
    strategy = balance.RoundRobin()
    a, b, c, d = (an_instance(n) for n in "abcd")
    assert [strategy.pick([c, a, b]).key for _ in range(2)] == ["a", "b"]
    assert [strategy.pick([a, d, c]).key for _ in range(3)] == ["c", "d", "a"]


def test_random_follows_weights():
    strategy = balance.Random(random.Random(7))
    chosen = collections.Counter(
        strategy.pick([an_instance("a", weight=9.0), an_instance("b")]).key for _ in range(1000)
    )
    assert 850 < chosen["a"] < 950
