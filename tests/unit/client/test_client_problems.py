"""Problems: RFC 9457 on the wire, exceptions on both sides of it."""

from __future__ import annotations

import pickle

import msgspec
import pytest

from rollbook import problems
from rollbook.problems import Problem


@pytest.mark.parametrize("code", problems.STATUS)
def test_a_problem_survives_the_wire(code):
    problem = Problem(code, "what happened", field="ip", accepted="another")
    sent = msgspec.json.encode(problem.details())
    details = msgspec.json.decode(sent, type=problems.ProblemDetails)
    assert details.status == problems.STATUS[code]
    assert details.type == f"urn:rollbook:problem:{code}"
    again = problems.from_details(details)
    assert (again.code, again.detail, again.field, again.accepted) == (code, "what happened", "ip", "another")


def test_a_problem_survives_pickling():
    again = pickle.loads(pickle.dumps(Problem("forbidden", "no", field="owner")))
    assert (again.code, again.detail, again.field, str(again)) == ("forbidden", "no", "owner", "no")


def test_a_code_from_a_newer_registry_is_kept():
    assert Problem("teapot", "short and stout").status == 500


def test_a_long_value_is_shown_in_part():
    problem = problems.bad_value("ip", "x" * 10_000, "an address")
    assert len(problem.detail) < 130
    assert problem.detail.startswith("ip is 'xxx")


class Body(msgspec.Struct, forbid_unknown_fields=True):
    port: int
    inner: dict[str, int] = {}
    more: list[int] = []


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b'{"port":"x"}', "port"),
        (b"{}", "port"),
        (b'{"port":1,"prot":2}', "prot"),
        (b'{"port":1,"inner":{"a":"b"}}', "inner[...]"),
        (b'{"port":1,"more":[1,"b"]}', "more[1]"),
        (b"[]", "body"),
        (b"{", "body"),
    ],
)
def test_a_wrong_type_is_named_by_its_path(text, field):
    with pytest.raises(msgspec.DecodeError) as error:
        msgspec.json.decode(text, type=Body)
    assert problems.from_validation(error.value).field == field
