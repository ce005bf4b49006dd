"""The formats of snapshot and journal: what was written is read, and nothing is believed that was not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registrykit import a_ref, an_entry
from rollbook.model import EntryRef
from rollbook.names import LeaseId
from rollbook_registry.catalog.leases import Kind
from rollbook_registry.catalog.records import EntryRecord, LeaseWrite, PodRecord
from rollbook_registry.store import journal, snapshot
from rollbook_registry.store.framing import Fault, UnusableError
from rollbook_registry.store.journal import Gone, Removals, Removed
from rollbook_registry.store.snapshot import SLICE, Header

HEADER = Header(saved=1000.0, boot="abcd", ordinal=2, generation=7)


def a_record(port=8080, **fields):
    return EntryRecord(entry=an_entry(port), order=port, since=port, **fields)


def a_write(id_="a", *, term=1, n=1, ports=(), **fields):
    put = [a_record(port) for port in ports]
    return LeaseWrite(id=LeaseId(id_), kind=Kind.SESSION, term=term, n=n, put=put, **fields)


ports = st.lists(st.integers(1, 65535), max_size=5, unique=True)
writes = st.builds(
    lambda id_, ports, **fields: a_write(id_, ports=ports, **fields),
    st.text(max_size=5),
    ports,
    term=st.integers(0, 2**40),
    n=st.integers(0, 2**40),
    owner=st.text(max_size=5),
    epoch=st.integers(0, 2**40),
    attached=st.booleans(),
    whole=st.booleans(),
)
pods = st.builds(
    PodRecord,
    uid=st.text(max_size=5),
    fenced=st.booleans(),
    age=st.floats(0, 1e6),
    ips=st.lists(st.text(max_size=5), max_size=2),
)
leases = st.lists(st.tuples(st.integers(0, 5), writes), max_size=10)


def encoded(leases=(), pods=()):
    return b"".join(snapshot.encode(HEADER, leases=leases, pods=pods))


WHOLE = encoded([(0, a_write("a", ports=[1, 2])), (1, a_write("b"))], [PodRecord(uid="p", fenced=True)])


@given(leases, st.lists(pods, max_size=10))
def test_a_snapshot_that_was_written_is_read(leases, pods):
    assert snapshot.decode(encoded(leases, pods)) == (HEADER, leases, pods)


def test_no_slice_has_much_more_than_was_agreed_and_the_book_is_asked_slice_by_slice():
    asked = []

    def book():
        for n in range(5 * SLICE):
            asked.append(n)
            yield 0, a_write(str(n), ports=[1])

    before = 0
    for part in snapshot.encode(HEADER, leases=book(), pods=[]):
        assert len(asked) - before <= SLICE
        assert len(part) < 500 * SLICE
        before = len(asked)
    assert before == 5 * SLICE


@given(st.data())
def test_a_byte_that_was_changed_makes_all_of_it_unusable(data):
    place = data.draw(st.integers(0, len(WHOLE) - 1))
    by = data.draw(st.integers(1, 255))
    bad = bytearray(WHOLE)
    bad[place] ^= by
    with pytest.raises(UnusableError):
        snapshot.decode(bytes(bad))


def test_a_snapshot_that_was_cut_off_is_unusable():
    for length in range(len(WHOLE)):
        with pytest.raises(UnusableError):
            snapshot.decode(WHOLE[:length])


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", Fault.TRUNCATED),
        (b"RLBK", Fault.TRUNCATED),
        (b"PK\x03\x04 something else entirely", Fault.FOREIGN),
        (snapshot.MAGIC + b"\x00\x09" + WHOLE[10:], Fault.FUTURE),
        (snapshot.MAGIC + b"\x00\x00" + WHOLE[10:], Fault.DAMAGED),
        (WHOLE[:-1], Fault.DAMAGED),
        (WHOLE + b"\x00", Fault.DAMAGED),
    ],
)
def test_the_reason_is_told(data, fault):
    with pytest.raises(UnusableError) as caught:
        snapshot.decode(data)
    assert caught.value.fault is fault
    assert str(caught.value)


def test_contents_of_another_shape_are_unusable_though_their_checksum_is_right(monkeypatch):
    class Other(msgspec.Struct, array_like=True):
        leases: str
        pods: int

    begin = snapshot.head(snapshot.MAGIC, snapshot.VERSION) + snapshot._framed(HEADER)
    for other in (Other("x", 1), {"a": 1}, [[[0, {"id": 7}]]]):
        parts = [begin, snapshot._framed(other)]
        monkeypatch.setattr(snapshot, "_parts", lambda *_, parts=parts: iter(parts))
        with pytest.raises(UnusableError) as caught:
            snapshot.decode(encoded())
        assert caught.value.fault is Fault.DAMAGED


# --- the journal ---------------------------------------------------------------------------------------

refs = ports.map(lambda ports: [a_ref(port) for port in ports])
removals = st.lists(
    st.builds(
        Removed,
        at=st.floats(0, 1e9),
        leases=st.lists(
            st.builds(
                Gone,
                id=st.text(max_size=5),
                term=st.integers(0, 9),
                n=st.integers(0, 9),
                drop=refs,
                ended=st.booleans(),
            ),
            max_size=4,
        ),
        pods=st.lists(pods, max_size=4),
    ),
    max_size=6,
)


@given(removals)
def test_a_journal_that_was_written_is_read(removals):
    data = journal.HEAD + b"".join(map(journal.encode, removals))
    assert journal.decode(data) == (removals, 0)


@given(removals, st.data())
def test_a_torn_journal_is_read_up_to_where_it_is_torn(removals, data):
    frames = [journal.encode(removed) for removed in removals]
    whole = journal.HEAD + b"".join(frames)
    length = data.draw(st.integers(0, len(whole)))
    found = journal.decode(whole[:length])
    complete = 0
    end = len(journal.HEAD)
    while complete < len(frames) and end + len(frames[complete]) <= length:
        end += len(frames[complete])
        complete += 1
    assert found.removed == removals[:complete]
    assert found.torn == (length - end if length >= len(journal.HEAD) else length)


@given(removals, st.data())
def test_a_damaged_journal_tells_nothing_that_was_not_written(removals, data):
    whole = bytearray(journal.HEAD + b"".join(map(journal.encode, removals)))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    try:
        found = journal.decode(bytes(whole))
    except UnusableError:
        assert place < len(journal.HEAD)
    else:
        assert found.removed == removals[: len(found.removed)]
        assert len(found.removed) < len(removals)
        assert found.torn > 0


def test_of_what_is_written_only_losses_are_noted():
    assert journal.gone(a_write(ports=[1], whole=True)) is None
    assert journal.gone(a_write(attached=True)) is None
    assert journal.gone(a_write(term=2, n=3, drop=[a_ref(1)])) == Gone("a", 2, 3, [a_ref(1)])
    assert journal.gone(a_write(term=2, n=3, ended=True)) == Gone("a", 2, 3, [], ended=True)


def test_a_lease_that_goes_on_at_another_replica_has_lost_nothing():
    assert journal.gone(a_write(ended=True, reason="yielded")) is None


# --- what remains --------------------------------------------------------------------------------------


def after(*gone, at=0.0, pods=(), age=0.0):
    removals = Removals()
    removals.add(Removed(at, list(gone), list(pods)), age=age)
    return removals


def left(pieces, *gone):
    return [
        (origin, write.id, [record.entry.port for record in write.put])
        for origin, write in after(*gone).whole(pieces)
    ]


def test_an_entry_that_was_dropped_later_is_left_out_and_one_that_was_entered_since_is_not():
    piece = (0, a_write(term=2, n=5, ports=[1, 2]))
    assert left([piece]) == [(0, "a", [1, 2])]
    for version in ((2, 6), (3, 1)):
        assert left([piece], Gone("a", *version, [a_ref(1)])) == [(0, "a", [2])]
    for version in ((2, 5), (2, 4), (1, 9)):
        assert left([piece], Gone("a", *version, [a_ref(1)])) == [(0, "a", [1, 2])]
    assert left([piece], Gone("b", 9, 9, [a_ref(1)])) == [(0, "a", [1, 2])]


def test_the_last_of_several_removals_counts_in_whatever_order_they_are_read():
    piece = (0, a_write(term=2, n=5, ports=[1]))
    early, late = Gone("a", 2, 4, [a_ref(1)]), Gone("a", 2, 6, [a_ref(1)])
    assert left([piece], early, late) == left([piece], late, early) == [(0, "a", [])]


def test_a_lease_that_ended_later_is_left_out():
    assert left([(0, a_write(n=5, ports=[1]))], Gone("a", 1, 6, ended=True)) == []
    assert left([(0, a_write(term=2, n=1, ports=[1]))], Gone("a", 1, 6, ended=True)) == [(0, "a", [1])]


def test_pieces_are_put_together_each_judged_by_its_own_version():
    pieces = [
        (1, a_write(n=5, ports=[1, 2])),
        (0, a_write("b", ports=[9])),
        # In between it was taken up here, and 1 and 3 were dropped; 3 was entered again.
        (0, a_write(term=2, n=8, ports=[3], epoch=4)),
        (0, a_write(term=2, n=8, ports=[4], epoch=4)),
    ]
    removals = after(Gone("a", 2, 7, [a_ref(1), a_ref(3)]))
    whole = {write.id: (origin, write) for origin, write in removals.whole(pieces)}
    origin, write = whole["a"]
    assert origin == 0
    assert write.version == (2, 8)
    assert write.epoch == 4
    assert write.whole
    assert [record.entry.port for record in write.put] == [2, 3, 4]
    assert [record.entry.port for record in whole["b"][1].put] == [9]


def test_pods_grow_older_while_nobody_looks_and_a_clock_set_back_makes_nobody_younger():
    record = PodRecord(uid="p", age=5.0)
    assert after(pods=[record], age=60.0).pods == [PodRecord(uid="p", age=65.0)]
    assert after(pods=[record], age=-60.0).pods == [record]


def test_a_pod_that_was_closed_and_then_fenced_is_fenced():
    fenced, closed = PodRecord(uid="p", fenced=True, ips=["10.0.0.1"]), PodRecord(uid="p", age=9.0)
    assert after(pods=[closed, fenced]).pods == after(pods=[fenced, closed]).pods == [fenced]


def test_the_longer_age_of_a_pod_counts():
    ages = [PodRecord(uid="p", age=age) for age in (3.0, 8.0, 5.0)]
    assert after(pods=ages).pods == [PodRecord(uid="p", age=8.0)]


def test_a_reference_is_the_same_wherever_it_was_written_down():
    ref = msgspec.msgpack.decode(msgspec.msgpack.encode(a_ref(1)), type=EntryRef)
    assert left([(0, a_write(ports=[1]))], Gone("a", 1, 2, [ref])) == [(0, "a", [])]
