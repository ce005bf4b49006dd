"""Who may say what."""

from __future__ import annotations

import pytest

from registrykit import an_entry
from rollbook.problems import Problem
from rollbook_registry.auth import policy
from rollbook_registry.auth.identity import (
    ANONYMOUS,
    LOCAL,
    Accounts,
    Identity,
    Role,
    from_claims,
    from_review,
)

POD = Identity(Role.POD, "shop/default (orders-1)", "u")
OPERATOR = Identity(Role.OPERATOR, "rollbook/operator", "op")
ACCOUNT = Identity(Role.ACCOUNT, "shop/default")

ALLOWED = {
    policy.may_open_session: {POD, OPERATOR, ACCOUNT, LOCAL},
    policy.may_write: {POD, OPERATOR, LOCAL},
    lambda who: policy.may_operate(who, "close pods"): {OPERATOR, LOCAL},
    lambda who: policy.may_speak_for(who, "u"): {POD, OPERATOR, LOCAL},
    lambda who: policy.may_speak_for(who, "v"): {OPERATOR, LOCAL},
    lambda who: policy.may_speak_for(who, ""): {OPERATOR, LOCAL},
}


@pytest.mark.parametrize("who", [POD, OPERATOR, ACCOUNT, LOCAL, ANONYMOUS], ids=lambda who: who.role.value)
@pytest.mark.parametrize("rule", range(len(ALLOWED)))
def test_each_role_may_what_it_may_and_nothing_else(who, rule):
    check, allowed = list(ALLOWED.items())[rule]
    if who in allowed:
        check(who)
    else:
        with pytest.raises(Problem) as refused:
            check(who)
        assert refused.value.status == (401 if who is ANONYMOUS else 403)


def test_a_pod_that_speaks_for_another_is_told_whom_it_may_speak_for():
    with pytest.raises(Problem) as refused:
        policy.may_enter(POD, [an_entry(owner="u"), an_entry(owner="v")], operator=False)
    assert (refused.value.field, refused.value.accepted) == ("owner", "its own pod's UID, u")
    policy.may_enter(POD, [an_entry(owner="u")], operator=False)


@pytest.mark.parametrize(
    "fields", [{"ready": True}, {"ready": False}, {"beats_required": True}, {"probed": True}]
)
def test_what_kubernetes_says_only_an_operators_lease_may_say(fields):
    for who in (POD, LOCAL, OPERATOR):
        with pytest.raises(Problem) as refused:
            policy.may_enter(who, [an_entry(owner="u"), an_entry(owner="u", **fields)], operator=False)
        assert refused.value.field == f"entries[1].{next(iter(fields))}"
    policy.may_enter(OPERATOR, [an_entry(owner="u", **fields)], operator=True)


CLAIMS = {
    "exp": 99,
    "kubernetes.io": {
        "namespace": "shop",
        "serviceaccount": {"name": "default", "uid": "sa"},
        "pod": {"name": "orders-1", "uid": "u"},
    },
}


def test_claims_tell_pod_account_and_operator():
    assert from_claims(CLAIMS, Accounts()) == Identity(Role.POD, "shop/default (orders-1)", "u", 99)
    assert from_claims(CLAIMS, Accounts("shop/default")).role is Role.OPERATOR
    assert from_claims(CLAIMS, Accounts("shop/other")).role is Role.POD
    unbound = {"exp": 99, "kubernetes.io": {**CLAIMS["kubernetes.io"], "pod": {}}}
    assert from_claims(unbound, Accounts()).role is Role.ACCOUNT
    # No account at all is never the operator's, even if none was configured.
    assert from_claims({}, Accounts()).role is Role.ACCOUNT


def test_a_review_tells_the_same():
    status = {
        "user": {
            "username": "system:serviceaccount:shop:default",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["orders-1"],
                "authentication.kubernetes.io/pod-uid": ["u"],
            },
        }
    }
    expected = from_claims(CLAIMS, Accounts())
    assert from_review(status, expires=99, accounts=Accounts()) == expected
    assert from_review(status, expires=99, accounts=Accounts("shop/default")).role is Role.OPERATOR
    status["user"]["extra"] = None
    assert from_review(status, expires=99, accounts=Accounts()).role is Role.ACCOUNT
    person = {"user": {"username": "jane", "groups": ["system:masters"]}}
    assert from_review(person, expires=99, accounts=Accounts("shop/default")).role is Role.ACCOUNT


def test_administrators_may_lay_down_what_stays_and_are_no_operators():
    boss = from_claims(CLAIMS, Accounts("", frozenset({"shop/default"})))
    assert boss.role is Role.ADMINISTRATOR
    policy.may_administer(boss, "take an instance offline")
    policy.may_administer(LOCAL, "take an instance offline")
    policy.may_speak_for(boss, "another pod")
    with pytest.raises(Problem, match="only the operator"):
        policy.may_operate(boss, "fence pods")
    pod = from_claims(CLAIMS, Accounts())
    with pytest.raises(Problem, match="only administrators may") as refused:
        policy.may_administer(pod, "take an instance offline")
    assert refused.value.status == 403
    with pytest.raises(Problem) as refused:
        policy.may_administer(ANONYMOUS, "take an instance offline")
    assert refused.value.status == 401
