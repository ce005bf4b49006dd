"""Views: a subscriber's copy; what a registry that has just started does not know is not forgotten."""

from __future__ import annotations

import pytest

from registrykit import ORDERS
from rollbook import frames
from rollbook.digest import digest, instance_digest, spell
from rollbook.model import Instance
from rollbook.names import instance_key
from rollbook.view import Change, OutOfStep, View


def at(n, *, owner="", port=8080, **fields):
    ip = f"10.0.0.{n}"
    key = instance_key(ip=ip, port=port, cluster="DEFAULT", owner=owner)
    return Instance(**{"key": key, "ip": ip, "port": port, "owner": owner, **fields})


def snapshot(revision, *instances, settled=True):
    return frames.Snapshot(
        service="orders", revision=revision, digest=spell(digest(instances)), settled=settled,
        instances=list(instances),
    )  # fmt: skip


def delta(base, revision, result, put=(), drop=()):
    return frames.Delta(
        service="orders", base=base, revision=revision, digest=spell(digest(result)), put=list(put),
        drop=[i.key for i in drop],
    )  # fmt: skip


def current(revision, *instances, settled=True):
    return frames.Current(
        service="orders", revision=revision, settled=settled, digest=spell(digest(instances))
    )


def shown(view):
    return {i.key: i for i in view.instances}


def named(*instances):
    return {i.key: i for i in instances}


@pytest.fixture
def view():
    return View(ORDERS)


A, B, C = at(1), at(2), at(3)


def test_a_digest_depends_on_every_field_but_not_on_order():
    base = at(1, metadata={"a": "1", "b": "2"})
    assert instance_digest(base) == instance_digest(at(1, metadata={"b": "2", "a": "1"}))
    assert digest([A, B]) == digest([B, A])
    assert digest([]) == 0
    assert spell(0) == "0" * 16
    different = {
        "key": "k", "ip": "10.0.0.9", "port": 9, "cluster": "c", "weight": 2.0, "enabled": False,
        "healthy": False, "ready": False, "alive": False, "unconfirmed": True, "ephemeral": False,
        "instance_id": "i", "owner": "o", "metadata": {"a": "1"},
    }  # fmt: skip
    assert set(different) == set(Instance.__struct_fields__)
    for field, value in different.items():
        fields = {name: getattr(base, name) for name in Instance.__struct_fields__}
        assert instance_digest(Instance(**{**fields, field: value})) != instance_digest(base), field


def test_a_snapshot_and_deltas_give_the_registrys_list(view):
    assert not view.known
    assert view.snapshot(snapshot("b.1", A, B)) == Change([A, B], [])
    assert view.known
    sick = at(2, healthy=False)
    assert view.delta(delta("b.1", "b.2", [sick, C], [sick, C], [A])) == Change([sick, C], [A.key])
    assert shown(view) == named(sick, C)
    assert (view.revision, view.digest) == ("b.2", spell(digest([sick, C])))
    assert view.snapshot(snapshot("b.3", B, C)) == Change([B], [])


@pytest.mark.parametrize(
    "bad",
    [
        delta("b.0", "b.2", [A, B, C], [C]),
        delta("b.1", "b.2", [A, B], [C]),
        delta("b.1", "b.2", [B, C], [C, at(2, healthy=False)], [A]),
        current("b.2", A),
    ],
    ids=["another base", "another digest", "put and drop", "current with another digest"],
)
def test_what_does_not_fit_changes_nothing_and_asks_for_a_fresh_list(view, bad):
    view.snapshot(snapshot("b.1", A, B))
    with pytest.raises(OutOfStep):
        view.delta(bad) if isinstance(bad, frames.Delta) else view.current(bad)
    assert shown(view) == named(A, B)
    assert (view.revision, view.digest) == ("b.1", spell(digest([A, B])))


def test_current_brings_the_registrys_revision(view):
    view.snapshot(snapshot("b.1", A))
    assert not view.current(current("c.7", A))
    assert view.revision == "c.7"
    # A registry that does not say its digest is believed.
    view.current(frames.Current(service="orders", revision="c.8", settled=True))
    assert view.revision == "c.8"


def test_a_key_that_was_never_known_may_be_dropped(view):
    view.snapshot(snapshot("b.1", A))
    assert view.delta(delta("b.1", "b.2", [A], drop=[B])) == Change([], [])
    assert view.revision == "b.2"


def test_an_unsettled_snapshot_does_not_make_a_subscriber_forget(view):
    view.snapshot(snapshot("b.1", A, B))
    assert view.snapshot(snapshot("c.0", settled=False)) == Change([], [])
    assert shown(view) == named(A, B)
    # What is held is not part of the digest that is compared with the registry's.
    assert view.digest == spell(0)


def test_what_is_held_is_let_go_when_the_registry_is_settled(view):
    view.snapshot(snapshot("b.1", A, B))
    view.snapshot(snapshot("c.1", B, settled=False))
    assert view.settle() == Change([], [A.key])
    assert shown(view) == named(B)
    assert view.settled


@pytest.mark.parametrize("way", ["snapshot", "current"])
def test_a_settled_answer_lets_go_of_what_is_held(view, way):
    view.snapshot(snapshot("b.1", A, B))
    view.snapshot(snapshot("c.1", B, settled=False))
    frame = snapshot("c.2", B) if way == "snapshot" else current("c.2", B)
    assert getattr(view, way)(frame) == Change([], [A.key])


def test_an_explicit_drop_takes_away_what_is_held(view):
    view.snapshot(snapshot("b.1", A, B))
    view.snapshot(snapshot("c.1", settled=False))
    assert view.delta(delta("c.1", "c.2", [], drop=[A])) == Change([], [A.key])
    assert shown(view) == named(B)


def test_what_is_held_of_a_pod_that_is_said_to_be_gone_is_let_go(view):
    owned, listed = at(7, owner="u"), at(8, owner="u")
    view.snapshot(snapshot("b.1", owned, listed, B))
    view.snapshot(snapshot("c.1", listed, settled=False))
    # What the registry lists it takes off its list itself.
    assert view.gone({"u"}) == Change([], [owned.key])
    assert shown(view) == named(listed, B)
    assert not view.gone({"u"})


def test_a_pod_that_is_said_to_be_gone_before_the_list_comes_is_not_held(view):
    owned = at(7, owner="u")
    view.snapshot(snapshot("b.1", owned, B))
    view.unsettle()
    assert not view.gone({"u"})
    assert view.snapshot(snapshot("c.0", settled=False)) == Change([], [owned.key])
    assert shown(view) == named(B)


def test_what_comes_back_is_not_held_any_more(view):
    view.snapshot(snapshot("b.1", A, B))
    view.snapshot(snapshot("c.1", settled=False))
    assert view.delta(delta("c.1", "c.2", [A], [A])) == Change([A], [])
    assert shown(view) == named(A, B)
    assert view.settle() == Change([], [B.key])


@pytest.mark.parametrize("way", ["snapshot", "delta"])
def test_the_same_address_anew_supersedes_what_is_held(view, way):
    old, new = at(1, owner="old"), at(1, owner="new")
    view.snapshot(snapshot("b.1", old, B))
    if way == "snapshot":
        change = view.snapshot(snapshot("c.1", new, settled=False))
    else:
        view.snapshot(snapshot("c.0", settled=False))
        change = view.delta(delta("c.0", "c.1", [new], [new]))
    assert change == Change([new], [old.key])
    assert shown(view) == named(new, B)


def test_another_port_supersedes_nothing(view):
    view.snapshot(snapshot("b.1", A))
    view.snapshot(snapshot("c.1", at(1, port=9), settled=False))
    assert shown(view) == named(A, at(1, port=9))


def test_a_copy_from_disk_is_shown_until_a_registry_says_otherwise(view):
    view.restore([A, B], "b.1")
    assert view.known
    assert shown(view) == named(A, B)
    assert view.snapshot(snapshot("c.1", B)) == Change([], [A.key])


def test_additions_come_before_removals_so_a_roll_out_never_shows_nothing(view):
    view.snapshot(snapshot("b.1", A))
    change = view.delta(delta("b.1", "b.2", [B], [B], [A]))
    held = {A.key}
    for key in (i.key for i in change.put):
        held.add(key)
    assert held == {A.key, B.key}
    held -= set(change.drop)
    assert held == {B.key}
