"""Tokens: real signatures, and an API server that has the keys, or hasn't."""

from __future__ import annotations

import base64
import time

import jwt
import pytest

from apiserverkit import ApiServer, Key, vouched
from rollbook.kube import KubeApi
from rollbook.problems import Problem
from rollbook_registry.auth import Role
from rollbook_registry.auth.identity import Accounts
from rollbook_registry.auth.tokens import KEYS_REREAD, LEEWAY, Verifier


@pytest.fixture(scope="module")
def key():
    return Key("k1")


@pytest.fixture(scope="module")
def other():
    return Key("k2")


@pytest.fixture
async def server(key):
    server = ApiServer(key)
    async with server.server:
        yield server


class Wall:
    """Unix time that a test may move."""

    ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
async def verifier(server, wall):
    async with KubeApi(server.url, context=None, token="own") as api:
        yield Verifier(api, audience="rollbook", accounts=Accounts("rollbook/operator"), wall=wall)


async def refusal(verifier, token):
    with pytest.raises(Problem) as refused:
        await verifier.verify(token)
    return refused.value


async def test_a_good_token_says_whose_it_is_and_how_long(verifier, key, server):
    who = await verifier.verify(key.token(expires=600.0))
    assert (who.role, who.pod_uid, who.name) == (Role.POD, "u", "shop/default (orders-1)")
    assert abs(who.expires - time.time() - 600) < 10
    operator = await verifier.verify(key.token(account="rollbook/operator", uid="op"))
    assert operator.role is Role.OPERATOR
    unbound = await verifier.verify(key.token(uid=""))
    assert unbound.role is Role.ACCOUNT
    assert (server.reads, server.reviewed) == (1, [])


async def test_an_expired_token_is_refused_as_such(verifier, key):
    problem = await refusal(verifier, key.token(expires=-60.0))
    assert (problem.code, problem.status, problem.field) == ("token_expired", 401, "Authorization")
    # Clocks may differ a little.
    assert (await verifier.verify(key.token(expires=-LEEWAY / 2))).role is Role.POD


async def test_a_token_that_was_good_is_not_remembered_beyond_its_end(verifier, key, wall):
    token = key.token(expires=-LEEWAY + 5.0)
    await verifier.verify(token)
    wall.ahead = 60.0
    verifier._verify = nobody_is_asked = _Count()
    with pytest.raises(AssertionError):
        await verifier.verify(token)
    assert nobody_is_asked.calls == 1


class _Count:
    calls = 0

    async def __call__(self, _):
        self.calls += 1
        raise AssertionError("verified again")


async def test_a_token_is_verified_once(verifier, key):
    token = key.token()
    first = await verifier.verify(token)
    verifier._verify = _Count()
    assert await verifier.verify(token) is first


@pytest.mark.parametrize(
    "wrong",
    [
        {"audience": "https://kubernetes.default.svc"},
        {"issuer": "https://elsewhere"},
        {"drop": ["aud"]},
        {"drop": ["exp"]},
        {"drop": ["sub"]},
        {"drop": ["iss"]},
    ],
    ids=str,
)
async def test_a_token_made_for_others_or_without_its_claims_is_refused(verifier, key, server, wrong):
    problem = await refusal(verifier, key.token(**wrong))
    assert (problem.code, problem.status) == ("unauthenticated", 401)
    assert server.reviewed == []


async def test_a_token_signed_with_another_key_under_a_known_name_is_refused(verifier, other):
    assert (await refusal(verifier, other.token(kid="k1"))).code == "unauthenticated"


async def test_a_token_that_was_changed_is_refused(verifier, key):
    head, body, signature = key.token(uid="u").split(".")
    forged = base64.urlsafe_b64encode(base64.urlsafe_b64decode(body + "==").replace(b'"u"', b'"v"'))
    token = f"{head}.{forged.decode().rstrip('=')}.{signature}"
    assert jwt.decode(token, options={"verify_signature": False})["kubernetes.io"]["pod"]["uid"] == "v"
    assert (await refusal(verifier, token)).code == "unauthenticated"


async def test_no_signature_and_a_shared_secret_are_no_signatures(verifier, server):
    await refusal(verifier, "garbage")
    claims = {"aud": "rollbook", "iss": "x", "sub": "y", "exp": time.time() + 60}
    for token in (
        jwt.encode(claims, None, algorithm="none", headers={"kid": "k1"}),
        jwt.encode(claims, "x" * 64, algorithm="HS256", headers={"kid": "k1"}),
    ):
        assert (await refusal(verifier, token)).code == "unauthenticated"
    assert server.reviewed == []


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.b.c", "é", "{}.{}.{}", "x" * 20_000])
async def test_garbage_is_refused_without_asking_anybody(verifier, server, token):
    assert (await refusal(verifier, token)).code == "unauthenticated"
    assert (server.reads, server.reviewed) == (0, [])


async def test_an_unknown_key_has_the_keys_read_again_once_and_then_the_token_reviewed(
    verifier, server, key, other, wall
):
    await verifier.verify(key.token())
    assert server.reads == 1
    # The API server signs with a new key, which it does not publish yet.
    token = other.token()
    server.known[token] = vouched()
    wall.ahead = KEYS_REREAD + 1
    who = await verifier.verify(token)
    assert (who.role, who.pod_uid) == (Role.POD, "u")
    assert who.expires > time.time()
    assert server.reads == 2
    (review,) = server.reviewed
    assert review["spec"] == {"token": token, "audiences": ["rollbook"]}
    # Others with that key do not have them read at once again.
    assert (await refusal(verifier, other.token(uid="v"))).code == "unauthenticated"
    assert server.reads == 2
    assert len(server.reviewed) == 2


async def test_a_new_key_is_taken_up(verifier, server, key, other, wall):
    await verifier.verify(key.token())
    server.keys = [other.public()]
    wall.ahead = KEYS_REREAD + 1
    assert (await verifier.verify(other.token())).role is Role.POD
    assert server.reviewed == []


async def test_where_keys_cannot_be_read_tokens_are_reviewed(verifier, server, key):
    server.keys_broken = True
    token = key.token()
    server.known[token] = vouched(account="rollbook:operator")
    assert (await verifier.verify(token)).role is Role.OPERATOR
    assert (await refusal(verifier, key.token(uid="v"))).code == "unauthenticated"


async def test_a_review_for_another_audience_is_no_yes(verifier, server, key):
    server.keys_broken = True
    token = key.token()
    server.known[token] = vouched(audiences=["https://kubernetes.default.svc"])
    assert (await refusal(verifier, token)).code == "unauthenticated"


async def test_when_nobody_can_be_asked_the_answer_is_503_and_not_no(verifier, server, key):
    server.keys_broken = server.reviews_broken = True
    problem = await refusal(verifier, key.token())
    assert (problem.code, problem.status) == ("not_ready", 503)
    # It is asked again later.
    server.reviews_broken = False
    token = key.token(uid="v")
    server.known[token] = vouched(uid="v")
    assert (await verifier.verify(token)).pod_uid == "v"


async def test_a_key_of_a_kind_that_is_not_understood_does_not_spoil_the_others(verifier, server, key):
    server.keys.insert(0, {"kty": "PQ", "kid": "future", "use": "sig"})
    assert (await verifier.verify(key.token())).role is Role.POD
