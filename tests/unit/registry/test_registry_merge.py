"""The merge: each sentence of its rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registrykit import Ledger, a_ref, an_entry
from rollbook.names import parse_instance_key
from rollbook_registry.catalog.leases import Held, Kind
from rollbook_registry.catalog.merge import Shown, judge, merge

POD = {"owner": "u"}


@pytest.fixture
def ledger():
    return Ledger()


def operator(ledger, *entries, lease="operator", epoch=1):
    ledger.enter(lease, *entries, operator=True, epoch=epoch)


# "The operator speaks for settings, service and readiness, the pod's own publishers for alive."


def test_settings_come_from_the_operator_and_alive_from_the_sidecar(ledger):
    operator(ledger, an_entry(**POD, weight=7.0, cluster="eu-1", metadata={"v": "2"}, instance_id="i"))
    ledger.enter("a", an_entry(**POD, weight=1.0, metadata={"v": "1"}, alive=False))
    instance = ledger.only()
    assert (instance.weight, instance.cluster, instance.metadata, instance.instance_id) == (
        7.0, "eu-1", {"v": "2"}, "i",
    )  # fmt: skip
    assert (instance.alive, instance.ready, instance.healthy) == (False, True, False)
    ledger.beat("a")
    assert ledger.only().healthy


@pytest.mark.parametrize(("ready", "shown"), [(None, True), (True, True), (False, False)])
def test_ready_is_mirrored_and_absent_means_yes(ledger, ready, shown):
    operator(ledger, an_entry(**POD, ready=ready))
    ledger.enter("a", an_entry(**POD))
    instance = ledger.only()
    assert (instance.ready, instance.alive, instance.healthy) == (shown, True, shown)


def test_readiness_that_changes_is_one_change(ledger):
    operator(ledger, an_entry(**POD, ready=False))
    ledger.take()
    ledger.register("operator", an_entry(**POD, ready=True))
    (change,) = ledger.changes()
    assert [i.healthy for i in change.put] == [True]


# "While no operator has spoken, the sidecar's settings count."


def test_while_no_operator_has_spoken_the_sidecars_settings_count(ledger):
    ledger.enter("a", an_entry(**POD, weight=3.0, cluster="b"))
    assert (ledger.only().weight, ledger.only().cluster) == (3.0, "b")
    assert ledger.only().ready


# "Once it has, they do not: an annotation changed on a live pod is obeyed ..., and a pod cannot enter what
# its manifest does not say."


def test_an_annotation_changed_on_a_live_pod_is_obeyed_though_its_sidecar_has_the_old_one(ledger):
    ledger.enter("a", an_entry(**POD, service="old"))
    operator(ledger, an_entry(**POD, service="orders"))
    assert ledger.only().healthy
    ledger.register("a", an_entry(**POD, service="old"))
    assert ledger.catalog.service(an_entry(service="old").service_key).instances == {}


def test_a_pod_cannot_enter_what_its_manifest_does_not_say(ledger):
    operator(ledger, an_entry(**POD))
    ledger.enter("a", an_entry(**POD), an_entry(99, **POD), an_entry(**POD, service="bank"))
    assert ledger.only().port == 8080
    assert ledger.catalog.service(an_entry(service="bank").service_key) is None


def test_a_pod_does_not_answer_from_an_address_that_is_not_its_own(ledger):
    operator(ledger, an_entry(**POD, beats_required=True))
    ledger.enter("a", an_entry(**POD, ip="10.0.0.99"))
    assert ledger.shown() == {}


# "Until its first verdict a readiness that a probe stands behind counts, else the instance is not alive."


@pytest.mark.parametrize(
    ("said", "alive"),
    [
        ({"probed": True, "ready": True}, True),
        ({"probed": True, "ready": False}, False),
        ({"probed": True}, False),
        ({"ready": True}, False),
    ],
)
def test_before_the_first_verdict_a_probed_readiness_counts_and_nothing_else(ledger, said, alive):
    operator(ledger, an_entry(**POD, beats_required=True, **said))
    ledger.enter("a", an_entry(**POD, alive=None))
    assert ledger.only().alive is alive
    # A beat that still cannot say is no verdict.
    ledger.beat("a", down=[a_ref(**POD)])
    assert ledger.only().alive is alive


def test_the_first_verdict_ends_it(ledger):
    operator(ledger, an_entry(**POD, probed=True, ready=True))
    ledger.enter("a", an_entry(**POD, alive=None))
    ledger.beat("a")
    assert ledger.only().alive
    ledger.beat("a", down=[a_ref(**POD)])
    assert not ledger.only().alive
    ledger.register("a", an_entry(**POD, alive=False))
    assert not ledger.only().alive


def test_who_falls_silent_before_the_first_verdict_is_not_alive(ledger):
    operator(ledger, an_entry(**POD, probed=True, ready=True))
    ledger.enter("a", an_entry(**POD, alive=None))
    ledger.wait(15.0, "operator")
    assert not ledger.only().alive


def test_without_an_operator_who_has_not_checked_yet_is_not_alive(ledger):
    ledger.enter("a", an_entry(**POD, alive=None), an_entry(81, alive=None))
    assert [i.alive for i in ledger.shown().values()] == [False, False]
    ledger.beat("a")
    assert [i.alive for i in ledger.shown().values()] == [True, True]


# "An operator's entry with beats_required is shown only while the pod's sidecar answers for it."


def test_a_pod_with_a_sidecar_is_hidden_until_the_sidecar_answers(ledger):
    operator(ledger, an_entry(**POD, beats_required=True))
    assert ledger.shown() == {}
    ledger.enter("a", an_entry(**POD))
    assert ledger.only().healthy


def test_a_pod_without_a_sidecar_is_shown_at_once(ledger):
    operator(ledger, an_entry(**POD))
    assert ledger.only().healthy


def test_the_silent_are_struck_out_and_reconciling_does_not_bring_them_back_but_beats_do(ledger):
    operator(ledger, an_entry(**POD, beats_required=True))
    ledger.enter("a", an_entry(**POD))
    ledger.wait(15.0, "operator")
    assert not ledger.only().healthy
    ledger.wait(15.0, "operator")
    assert ledger.shown() == {}
    ledger.register("operator", an_entry(**POD, beats_required=True))
    ledger.register("operator", an_entry(**POD, beats_required=True, ready=False))
    assert ledger.shown() == {}
    ledger.attach("a")
    ledger.register("a", an_entry(**POD))
    assert (ledger.only().alive, ledger.only().ready) == (True, False)


def test_a_port_that_the_sidecar_does_not_know_lives_by_the_pods_beats(ledger):
    operator(ledger, an_entry(**POD, beats_required=True), an_entry(81, **POD, beats_required=True))
    ledger.enter("a", an_entry(**POD))
    assert [i.alive for i in ledger.shown().values()] == [True, True]
    ledger.beat("a", down=[a_ref(**POD)])
    assert {i.port: i.alive for i in ledger.shown().values()} == {8080: False, 81: True}
    ledger.wait(15.0, "operator")
    assert not any(i.alive for i in ledger.shown().values())


def test_an_operators_silence_shows_pods_as_last_known_and_unconfirmed(ledger):
    operator(ledger, an_entry(**POD), an_entry(81, owner="v"))
    ledger.enter("a", an_entry(81, owner="v"))
    ledger.wait(60.0, "a")
    first, second = sorted(ledger.shown().values(), key=lambda i: i.owner)
    assert (first.healthy, first.unconfirmed) == (True, True)
    assert (second.healthy, second.unconfirmed) == (True, False)
    ledger.beat("operator")
    assert not any(i.unconfirmed for i in ledger.shown().values())


def test_what_an_operator_called_down_does_not_rise_by_its_silence(ledger):
    operator(ledger, an_entry(**POD, alive=False))
    assert not ledger.only().alive
    ledger.wait(60.0)
    assert (ledger.only().alive, ledger.only().unconfirmed) == (False, True)


def test_what_an_operator_entered_outlives_its_silence_by_ten_minutes(ledger):
    operator(ledger, an_entry(**POD), an_entry(81, owner="v", cluster="z"))
    ledger.enter("a", an_entry(81, owner="v"))
    ledger.wait(599.0, "a")
    assert len(ledger.shown()) == 2
    ledger.wait(1.0, "a")
    # Then the pods that answer for themselves are left, with their own settings.
    assert (ledger.only().owner, ledger.only().cluster) == ("v", "DEFAULT")


# "Of several publishers that speak for the same, the newest counts."


@pytest.mark.parametrize("with_operator", [False, True])
def test_a_restarted_sidecar_must_prove_again_that_its_application_works(ledger, with_operator):
    if with_operator:
        operator(ledger, an_entry(**POD))
    ledger.enter("old", an_entry(**POD))
    ledger.enter("new", an_entry(**POD, alive=False))
    assert not ledger.only().alive
    ledger.beat("old")
    assert not ledger.only().alive
    ledger.beat("new")
    assert ledger.only().alive


def test_what_only_the_older_operator_entered_stays_until_the_newer_ones_list_is_complete(ledger):
    operator(ledger, an_entry(**POD), an_entry(90, **POD), lease="old", epoch=1)
    operator(ledger, an_entry(**POD), lease="new", epoch=2)
    assert {i.port for i in ledger.shown().values()} == {an_entry(**POD).port, 90}
    ledger.synced("new")
    assert {i.port for i in ledger.shown().values()} == {an_entry(**POD).port}


def test_of_two_operators_the_newer_epoch_speaks(ledger):
    operator(ledger, an_entry(**POD, weight=1.0), lease="old", epoch=1)
    operator(ledger, an_entry(**POD, weight=2.0), lease="new", epoch=2)
    assert ledger.only().weight == 2.0


# "Entries without an owner stay apart, as Nacos keeps them; equal ones are shown once."


def test_equal_entries_without_an_owner_are_shown_once(ledger):
    ledger.enter("a", an_entry())
    ledger.take()
    ledger.enter("b", an_entry())
    assert ledger.changes() == []
    assert ledger.keys() == ["10.0.0.1:8080:DEFAULT"]
    ledger.release("a")
    assert ledger.changes() == []
    ledger.release("b")
    assert ledger.shown() == {}


def test_different_ones_stand_side_by_side(ledger):
    ledger.enter("a", an_entry(weight=1.0))
    ledger.enter("b", an_entry(weight=2.0))
    ledger.enter("c", an_entry(weight=3.0))
    assert sorted(i.weight for i in ledger.shown().values()) == [1.0, 2.0, 3.0]
    assert all(key == i.key for key, i in ledger.shown().items())


def test_the_first_has_the_plain_key_and_registering_again_does_not_swap_them(ledger):
    ledger.enter("a", an_entry(weight=1.0))
    ledger.enter("b", an_entry(weight=2.0))
    before = ledger.shown()
    assert before["10.0.0.1:8080:DEFAULT"].weight == 1.0
    ledger.take()
    # As every client does after a reconnection.
    ledger.register("a", an_entry(weight=1.0))
    ledger.register("b", an_entry(weight=2.0))
    assert ledger.changes() == []
    ledger.register("a", an_entry(weight=5.0))
    (change,) = ledger.changes()
    assert [(i.key, i.weight) for i in change.put] == [("10.0.0.1:8080:DEFAULT", 5.0)]
    assert change.drop == ()


@pytest.mark.parametrize("lease", ["x/10.0.0.9:8080", "0123456789abcdef", "same-end-12345678", "b"])
def test_every_key_beside_another_can_be_read_and_hides_the_lease(ledger, lease):
    ledger.enter("same-beginning-and-end-12345678", an_entry(weight=1.0))
    ledger.enter("another-end-12345678", an_entry(weight=2.0))
    ledger.enter(lease, an_entry(weight=3.0))
    assert len(ledger.shown()) == 3
    for key in ledger.shown():
        assert parse_instance_key(key) == ("10.0.0.1", 8080, "DEFAULT", "")
        assert lease == "b" or lease not in key


def test_another_cluster_or_port_is_another_instance(ledger):
    ledger.enter("a", an_entry(), an_entry(cluster="b"), an_entry(81))
    assert ledger.keys() == ["10.0.0.1:8080:DEFAULT", "10.0.0.1:8080:b", "10.0.0.1:81:DEFAULT"]


def test_two_pods_at_one_address_stay_apart(ledger):
    ledger.enter("a", an_entry(owner="u"))
    ledger.enter("b", an_entry(owner="v"))
    assert len(ledger.shown()) == 2


def test_an_instance_without_a_name_gets_one(ledger):
    ledger.enter("a", an_entry(**POD), an_entry(81), an_entry(82, instance_id="mine"))
    assert {i.instance_id for i in ledger.shown().values()} == {"orders:8080:u", "orders:81:10.0.0.1", "mine"}


def test_of_several_publishers_that_do_not_know_a_port_one_that_beats_answers_for_the_pod(ledger):
    operator(ledger, an_entry(**POD))
    ledger.enter("a", an_entry(81, **POD))
    ledger.enter("b", an_entry(82, **POD))
    ledger.wait(15.0, "b", "operator")
    assert ledger.only().healthy
    ledger.wait(15.0, "operator")
    assert not ledger.only().healthy


def test_what_needs_beats_is_not_shown_by_an_operator_that_has_fallen_silent_itself(ledger):
    operator(ledger, an_entry(**POD, beats_required=True))
    ledger.wait(15.0)
    assert ledger.shown() == {}


@given(
    owner=st.sampled_from(["", "u"]),
    kind=st.sampled_from(Kind),
    ready=st.sampled_from([None, True, False]),
    flags=st.tuples(*[st.booleans()] * 4),
)
def test_what_one_alone_says_is_merged_by_the_same_rules(owner, kind, ready, flags):
    entry = an_entry(owner=owner, ready=ready, weight=2.0)
    down, proven, silent, orphan = flags
    held = Held(
        entry=entry,
        ref=entry.ref,
        lease="a",
        kind=kind,
        epoch=0,
        order=1,
        since=1,
        term=1,
        seen=0.0,
        unhealthy_after=15.0,
        remove_after=30.0,
        down=down,
        proven=proven,
        silent=silent,
        orphan=orphan,
    )
    (judgement,) = judge([held])
    shown = () if judgement.where is None else (Shown(judgement.where[0], judgement.instance),)
    merged = merge([held])
    assert merged.visible == shown
    assert [s.instance.key for s in shown] == ([] if judgement.where is None else [judgement.where[1]])
    if owner and ready is True and kind in {Kind.SESSION, Kind.HTTP}:
        assert merged.silent == silent
