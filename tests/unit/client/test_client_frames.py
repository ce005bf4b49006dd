"""Frames: the same in both spellings; a bad one is said to be so."""

from __future__ import annotations

import contextlib
import json
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registrykit import an_entry
from rollbook import frames
from rollbook.problems import Problem


@pytest.fixture(params=frames.SUBPROTOCOLS)
def codec(request):
    return frames.Codec(request.param)


def test_another_subprotocol_is_refused():
    with pytest.raises(ValueError, match=r"accepted: rollbook\.v1\.msgpack, rollbook\.v1\.json"):
        frames.Codec("rollbook.v2.json")


def test_a_frame_comes_out_as_it_went_in(codec):
    for frame in (
        frames.Register(id=7, entries=[an_entry(metadata={"a": "ä"}, owner="u", ready=False)]),
        frames.Beat(term=3, down=[an_entry().ref]),
        frames.Barrier(id=1, services=[("n", "g", "s")], timeout=0.5),
        frames.Fence(id=1, pods=[frames.GonePod(uid="u", ips=["10.0.0.1"])]),
    ):
        assert codec.request(codec.encode(frame)) == frame


def test_both_spellings_carry_the_same_maps():
    frame = frames.Subscribe(id=1, service="orders")
    spelt = [frames.Codec(s).encode(frame) for s in frames.SUBPROTOCOLS]
    assert (
        msgspec.msgpack.decode(spelt[0])
        == json.loads(spelt[1])
        == {
            "type": "subscribe",
            "id": 1,
            "service": "orders",
        }
    )


def test_every_frame_is_told_apart_by_its_lower_case_name():
    for union in (frames.Request, frames.Answer):
        for type_ in get_args(union):
            assert msgspec.inspect.type_info(type_).tag == type_.__name__.lower()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"type":"ping","m":1}', "m"),
        ('{"type":"ping","n":"1"}', "n"),
        ('{"type":"nonsense"}', "type"),
        ('{"n":1}', "type"),
        (
            '{"type":"register","id":1,"entries":[{"service":"a","ip":"10.0.0.1","port":"x"}]}',
            "entries[0].port",
        ),
        ('{"type":"register","id":1,"entries":[{"service":"a","port":1}]}', "entries[0].ip"),
        ('{"type":"register","id":1,"entries":[{"service":"a","ip":"b","port":1,"x":1}]}', "entries[0].x"),
        ('{"type":"attach","lease":"a","kind":"king"}', "kind"),
    ],
)
def test_a_bad_frame_is_refused_by_the_field(codec, text, field):
    data = msgspec.msgpack.encode(json.loads(text)) if codec.binary else text
    with pytest.raises(Problem) as refused:
        codec.request(data)
    assert refused.value.code == "bad_frame"
    assert refused.value.field == field


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"{", b"[]", b"1", b'"\xff"', b"\x81" * 50_000, b"[" * 50_000]
)
def test_what_is_no_frame_is_refused(codec, data):
    for read in (codec.request, codec.answer):
        with pytest.raises(Problem) as refused:
            read(data)
        assert refused.value.code == "bad_frame"


def test_deep_nesting_is_refused_and_does_no_harm(codec):
    data = b'{"x":' * 5000 + b"1" + b"}" * 5000
    if codec.binary:
        data = b"\x82\xa1x" + b"\x91" * 5000
    with pytest.raises(Problem) as refused:
        codec.request(data)
    assert refused.value.code == "bad_frame"


def test_text_is_refused_where_binary_frames_were_agreed():
    with pytest.raises(Problem, match="accepted: binary frames of MessagePack"):
        frames.Codec(frames.MSGPACK).request('{"type":"ping"}')


@given(data=st.binary(max_size=60))
def test_no_bytes_make_a_codec_fail_otherwise_than_by_a_problem(data):
    for subprotocol in frames.SUBPROTOCOLS:
        codec = frames.Codec(subprotocol)
        for read in (codec.request, codec.answer):
            with contextlib.suppress(Problem):
                read(data)


def test_an_older_client_understands_a_newer_registry(codec):
    newer = {
        "type": "snapshot", "service": "s", "revision": "r", "digest": "d", "settled": True, "colour": "red",
        "instances": [{"key": "k", "ip": "10.0.0.1", "port": 1, "mood": "good"}],
    }  # fmt: skip
    data = msgspec.msgpack.encode(newer) if codec.binary else json.dumps(newer)
    assert codec.answer(data).instances[0].key == "k"
