"""Frames: each message as bytes, and no bytes that do harm."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit import shapes

from exesys.bus import messages as m
from exesys.bus import wire
from exesys.errors import ProtocolError

Decode = Callable[[bytes], m.Message]
HELD = m.Held("a:j", 2)
JOB = m.Job("a:j", 1, "end_job", "f", b"\xc0", 1.5, "t")
REPORT = m.Report("a:j", 1, 0, b"\x81\xa3EOJ\x05", "log", 7, 8)
ITEM = m.Item(1, "a", ["x", "y"], "f", b"\xc0", "j", {"priority": 9}, True, -1)
ADDED = m.Added("p", "q", "f", b"\xc0", {})

# Every message, as it looks on the line. A client in another language can be tested with the same list.
TO_ROUTER: list[tuple[m.Message, bytes]] = [
    (
        m.Hello(1, "client", "0123456789abcdef", "", {}),
        b"\x96\xa5HELLO\x01\xa6client\xb00123456789abcdef\xa0\x80",
    ),
    (
        m.Hello(1, "worker", "0123456789abcdef", "", {"queues": ["default"]}),
        b"\x96\xa5HELLO\x01\xa6worker\xb00123456789abcdef\xa0\x81\xa6queues\x91\xa7default",
    ),
    (
        m.Submit((ITEM,)),
        b"\x92\xa6SUBMIT\x91\x99\x01\xa1a\x92\xa1x\xa1y\xa1f\xc4\x01\xc0\xa1j\x81\xa8priority\x09\xc3\xff",
    ),
    (m.Submit(()), b"\x92\xa6SUBMIT\x90"),
    (m.Status((m.Query(2, "j", "a", "x,y", False),)), b"\x92\xa6STATUS\x91\x95\x02\xa1j\xa1a\xa3x,y\xc2"),
    (
        m.Result("0123456789abcdef", (REPORT,)),
        b"\x93\xa6RESULT\xb00123456789abcdef\x91\x98\xa3a:j\x01\x00\xc4\x06\x81\xa3EOJ\x05\xa3log\x07\x08\x90",
    ),
    (
        m.Result("s", (REPORT._replace(log="", added=(ADDED,)),)),
        b"\x93\xa6RESULT\xa1s\x91\x98\xa3a:j\x01\x00\xc4\x06\x81\xa3EOJ\x05\xa0\x07\x08"
        b"\x91\x95\xa1p\xa1q\xa1f\xc4\x01\xc0\x80",
    ),
    (m.Change(5, "cancel", "j"), b"\x94\xa6CHANGE\x05\xa6cancel\xa1j"),
    (m.Tune(5, "queue", "merge", "q", {"a": 1}), b"\x96\xa4TUNE\x05\xa5queue\xa5merge\xa1q\x81\xa1a\x01"),
    (
        m.Start(6, "cam", "7", "f", b"\xc0", -1, "a:j"),
        b"\x98\xa5START\x06\xa3cam\xa17\xa1f\xc4\x01\xc0\xff\xa3a:j",
    ),
    (
        m.Telling("s", (m.Told("cam:7", 2, 99, 5, -1, "", 0, 8, 1, "hi"),)),
        b"\x93\xa4TOLD\xa1s\x91\x9a\xa5cam:7\x02\x63\x05\xff\xa0\x00\x08\x01\xa2hi",
    ),
    (m.Exits("s", (m.Exit("cam:7", 2, 4, b"", 9),)), b"\x93\xa4EXIT\xa1s\x91\x95\xa5cam:7\x02\x04\xc4\x00\x09"),
    (
        m.Heartbeat("s", 3, 2, 34, (HELD,), (m.Note("a:j", 2, 0.5, "half", ""),)),
        b"\x97\xa2HB\xa1s\x03\x02\x22\x91\x92\xa3a:j\x02\x91\x95\xa3a:j\x02\xcb?\xe0\x00\x00\x00\x00\x00\x00\xa4half\xa0",
    ),
    (
        m.Mend(5, (m.Find("ready", "q", "a:j", ""),)),
        b"\x93\xa4MEND\x05\x91\x94\xa5ready\xa1q\xa3a:j\xa0",
    ),
    (m.Stop("cam", "7"), b"\x93\xa4STOP\xa3cam\xa17"),
    (m.Sync(5, ("stops", "workers")), b"\x93\xa4SYNC\x05\x92\xa5stops\xa7workers"),
    (m.Drain("s"), b"\x92\xa5DRAIN\xa1s"),
    (m.Bye("s", "ending"), b"\x93\xa3BYE\xa1s\xa6ending"),
]
TO_PEER: list[tuple[m.Message, bytes]] = [
    (
        m.Welcome(1, "s", 3, 1.0, 5, {"depth": 100}, {"results": "ipc:///r"}, "", {}),
        b"\x9a\xa7WELCOME\x01\xa1s\x03\xcb?\xf0\x00\x00\x00\x00\x00\x00\x05\x81\xa5depth\x64\x81\xa7results\xa8ipc:///r\xa0\x80",
    ),
    (m.SubmitAck((m.Answer(1, 0, None),)), b"\x92\xaaSUBMIT_ACK\x91\x93\x01\x00\xc0"),
    (
        m.SubmitAck((m.Answer(1, -1, ["conflict", "no", "", ""]),)),
        b"\x92\xaaSUBMIT_ACK\x91\x93\x01\xff\x94\xa8conflict\xa2no\xa0\xa0",
    ),
    (m.StatusReply((m.Answer(1, 4, [b"\x80", 3]),)), b"\x92\xa6STATUS\x91\x93\x01\x04\x92\xc4\x01\x80\x03"),
    (m.Done((m.Answer(1, 3, b"\x81\xa3EOJ\x05"),)), b"\x92\xa4DONE\x91\x93\x01\x03\xc4\x06\x81\xa3EOJ\x05"),
    (m.Changed(5, 3, None), b"\x94\xa7CHANGED\x05\x03\xc0"),
    (
        m.Changed(5, -1, ["not_found", "no", "", ""]),
        b"\x94\xa7CHANGED\x05\xff\x94\xa9not_found\xa2no\xa0\xa0",
    ),
    (
        m.Mended(5, 2, (m.Find("step", "", "a:j", "7"),), (m.Repair("orphan", "a:j"),)),
        b"\x95\xa6MENDED\x05\x02\x91\x94\xa4step\xa0\xa3a:j\xa17\x91\x92\xa6orphan\xa3a:j",
    ),
    (m.Cancel((HELD,)), b"\x92\xa6CANCEL\x91\x92\xa3a:j\x02"),
    (m.Busy((1, 2), "store", 0.5), b"\x94\xa4BUSY\x92\x01\x02\xa5store\xcb?\xe0\x00\x00\x00\x00\x00\x00"),
    (m.Error("bad_hello", "no", "", ""), b"\x95\xa5ERROR\xa9bad_hello\xa2no\xa0\xa0"),
    (m.Moved((1,), "{s07}", "tcp://x"), b"\x94\xa5MOVED\x91\x01\xa5{s07}\xa7tcp://x"),
    (
        m.Jobs(3, (JOB,)),
        b"\x93\xa3JOB\x03\x91\x97\xa3a:j\x01\xa7end_job\xa1f\xc4\x01\xc0\xcb?\xf8\x00\x00\x00\x00\x00\x00\xa1t",
    ),
    (m.ResultAck((HELD,)), b"\x92\xaaRESULT_ACK\x91\x92\xa3a:j\x02"),
    (
        m.HeartbeatAck("s", 3, 9, (m.StopName("cam", "7"),)),
        b"\x95\xa6HB_ACK\xa1s\x03\x09\x91\x92\xa3cam\xa17",
    ),
    (
        m.Launches((m.Launch("cam:7", 2, "f", b"\xc0", -1),)),
        b"\x92\xa6LAUNCH\x91\x95\xa5cam:7\x02\xa1f\xc4\x01\xc0\xff",
    ),
    (m.Stop("cam", "7"), b"\x93\xa4STOP\xa3cam\xa17"),
    (m.Snapshot(5, 3, 9, {"stops": []}), b"\x95\xa8SNAPSHOT\x05\x03\x09\x81\xa5stops\x90"),
    (m.Event(3, 9, ["cam", "7"]), b"\x94\xa5EVENT\x03\x09\x92\xa3cam\xa17"),
    (m.Bye("s", "silent for too long"), b"\x93\xa3BYE\xa1s\xb3silent for too long"),
]
TO_APP: list[tuple[m.Message, bytes]] = [
    (
        m.Call(1, "add", b"\x92\x91\x05\x80", 1.5),
        b"\x95\xa4CALL\x01\xa3add\xc4\x04\x92\x91\x05\x80\xcb?\xf8\x00\x00\x00\x00\x00\x00",
    )
]
TO_CALLER: list[tuple[m.Message, bytes]] = [
    (m.Return(1, True, b"\x05"), b"\x94\xa6RETURN\x01\xc3\xc4\x01\x05"),
    (m.Error("bad_message", "no", "", ""), b"\x95\xa5ERROR\xabbad_message\xa2no\xa0\xa0"),
]
CASES: list[tuple[m.Message, bytes, Decode]] = [
    *((message, frame, wire.decode_at_router) for message, frame in TO_ROUTER),
    *((message, frame, wire.decode_at_peer) for message, frame in TO_PEER),
    *((message, frame, wire.decode_at_app) for message, frame in TO_APP),
    *((message, frame, wire.decode_at_caller) for message, frame in TO_CALLER),
]
DECODERS = pytest.mark.parametrize(
    "decode", [wire.decode_at_router, wire.decode_at_peer, wire.decode_at_app, wire.decode_at_caller]
)


@pytest.mark.parametrize(("message", "frame", "decode"), CASES)
def test_each_message_has_its_bytes(message: m.Message, frame: bytes, decode: Decode) -> None:
    assert wire.encode(message) == frame
    decoded = decode(frame)
    assert decoded == message
    assert type(decoded) is type(message)


def test_every_kind_of_message_stands_in_the_list() -> None:
    assert {type(message) for message, _ in TO_ROUTER} == set(shapes.FROM_PEERS)
    assert {type(message) for message, _ in TO_PEER} == set(shapes.FROM_ROUTER)
    assert {type(message) for message, _ in TO_APP} == set(shapes.TO_APPS)
    assert {type(message) for message, _ in TO_CALLER} == set(shapes.FROM_APPS)
    told = {*shapes.FROM_PEERS, *shapes.FROM_ROUTER, *shapes.TO_APPS, *shapes.FROM_APPS}
    assert told == set(m.Message.__args__)


@settings(max_examples=60)
@given(shapes.any_of(shapes.FROM_PEERS))
def test_whatever_a_peer_says_arrives_at_the_router(message: m.Message) -> None:
    decoded = wire.decode_at_router(wire.encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


@settings(max_examples=60)
@given(shapes.any_of(shapes.FROM_ROUTER))
def test_whatever_the_router_says_arrives_at_a_peer(message: m.Message) -> None:
    decoded = wire.decode_at_peer(wire.encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


@settings(max_examples=60)
@given(shapes.any_of(shapes.TO_APPS), shapes.any_of(shapes.FROM_APPS))
def test_whatever_caller_and_application_server_say_arrives(call: m.Message, answer: m.Message) -> None:
    assert wire.decode_at_app(wire.encode(call)) == call
    assert wire.decode_at_caller(wire.encode(answer)) == answer


def test_what_is_nested_comes_back_as_its_type() -> None:
    submit = wire.decode_at_router(wire.encode(m.Submit((ITEM,))))
    assert isinstance(submit, m.Submit)
    assert type(submit.items) is tuple
    assert type(submit.items[0]) is m.Item
    beat = wire.decode_at_router(wire.encode(m.Heartbeat("s", 1, 2, 3, (HELD,), ())))
    assert isinstance(beat, m.Heartbeat)
    assert beat.held[0].attempt == 2


def test_a_number_of_seconds_may_be_whole() -> None:
    frame = msgpack.packb(["BUSY", [1], "store", 1])
    assert wire.decode_at_peer(frame) == m.Busy((1,), "store", 1.0)


# --- what is no message -----------------------------------------------------


def only_protocol_errors(decode: Decode, frame: bytes) -> m.Message | None:
    try:
        return decode(frame)
    except ProtocolError as error:
        said = str(error)
    assert len(said) < 400, "a peer's bytes are not quoted at length"
    return None


@DECODERS
@given(frame=st.binary(max_size=100))
def test_random_bytes_raise_one_error(decode: Decode, frame: bytes) -> None:
    only_protocol_errors(decode, frame)


wild = st.recursive(
    shapes.values
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=5))
    | st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


def kind_of(frame: bytes) -> str:
    """Read the name a frame begins with, all of which are short."""
    return frame[2 : 2 + (frame[1] & 31)].decode()


KINDS = sorted({kind_of(frame) for _, frame, _ in CASES})


@DECODERS
@given(value=wild)
def test_any_value_raises_one_error(decode: Decode, value: Any) -> None:
    only_protocol_errors(decode, msgpack.packb(value))


@DECODERS
@given(kind=st.sampled_from(KINDS), fields=st.lists(wild, max_size=10))
def test_any_fields_behind_a_known_name_raise_one_error(decode: Decode, kind: str, fields: list[Any]) -> None:
    only_protocol_errors(decode, msgpack.packb([kind, *fields]))


@pytest.mark.parametrize(("message", "frame", "decode"), CASES)
def test_a_valid_frame_with_errors_raises_one_error(message: m.Message, frame: bytes, decode: Decode) -> None:
    rng = random.Random(frame)
    for at in range(len(frame)):
        only_protocol_errors(decode, frame[:at])
        only_protocol_errors(decode, frame[:at] + frame[at + 1 :])
        for byte in (0x00, 0xC1, 0xFF, 0x90, 0xD9, 0xDD, 0xDF, rng.randrange(256)):
            only_protocol_errors(decode, frame[:at] + bytes([byte]) + frame[at + 1 :])
    for extra in (b"\x00", b"\xc1", frame):
        with pytest.raises(ProtocolError):
            decode(frame + extra)


@given(shapes.any_of(shapes.FROM_PEERS), st.data())
def test_a_field_of_another_type_is_named(message: m.Message, data: st.DataObject) -> None:
    if isinstance(message, m.Hello):
        message = message._replace(version=m.VERSION)  # of another, only the version is looked at
    fields = list(message)
    at = data.draw(st.integers(0, len(fields) - 1))
    fields[at] = data.draw(st.sampled_from([None, msgpack.ExtType(5, b"")]))
    with pytest.raises(ProtocolError) as caught:
        wire.decode_at_router(msgpack.packb([kind_of(wire.encode(message)), *fields]))
    assert f".{message._fields[at]} must be " in str(caught.value)


@given(st.integers(0, 99).filter(lambda version: version != m.VERSION), st.lists(st.integers(-9, 9), max_size=9))
def test_of_a_hello_of_another_version_only_that_is_read(version: int, rest: list[int]) -> None:
    told = wire.decode_at_router(msgpack.packb(["HELLO", version, *rest]))
    assert told == m.Hello(version, "", "", "", {})


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({}, "not an array that begins with the name"),
        ([], "not an array that begins with the name"),
        ([5, "x"], "not an array that begins with the name"),
        ([b"HELLO"], "not an array that begins with the name"),
        (["hello"], "the message 'hello' is unknown here"),
        (["X" * 500], "is unknown here"),
        (["DRAIN"], "DRAIN must be an array of 1: session"),
        (["DRAIN", "s", "t"], "DRAIN must be an array of 1: session"),
        (["DRAIN", b"s"], "DRAIN.session must be str, not bytes"),
        (["SUBMIT", {}], "SUBMIT.items must be an array, not dict"),
        (
            ["SUBMIT", [[1]]],
            "SUBMIT.items must be an array of 9: tag, from_, to, cmd, data, job_id, options, notify, flow",
        ),
        (["SUBMIT", [[True, "a", "b", "c", b"", "j", {}, True, 0]]], "SUBMIT.items.tag must be int, not bool"),
        (["SUBMIT", [[1, "a", "b", "c", "text", "j", {}, True, 0]]], "SUBMIT.items.data must be bytes, not str"),
        (["SUBMIT", [[1, "a", "b", "c", b"", "j", [], True, 0]]], "SUBMIT.items.options must be dict, not list"),
        (["HB", "s", 1, 2, 3, [["r", "1"]], []], "HB.held.attempt must be int, not str"),
        (["HB", "s", 1, 2, 3, [], [["r", 1, True, "", ""]]], "HB.notes.fraction must be float, not bool"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(value: Any, sentence: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        wire.decode_at_router(msgpack.packb(value))
    assert sentence in str(caught.value)


def test_each_side_understands_only_what_the_other_may_say() -> None:
    for message, frame in TO_PEER:
        if not isinstance(message, (m.Bye, m.StatusReply, m.Stop)):
            with pytest.raises(ProtocolError, match="is unknown here"):
                wire.decode_at_router(frame)
    for message, frame in TO_ROUTER:
        if not isinstance(message, (m.Bye, m.Status, m.Stop)):
            with pytest.raises(ProtocolError, match="is unknown here"):
                wire.decode_at_peer(frame)


@pytest.mark.parametrize("head", [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01"])
def test_deep_nesting_is_refused(head: bytes) -> None:
    for decode in (wire.decode_at_router, wire.decode_at_peer):
        with pytest.raises(ProtocolError):
            decode(head * 100_000 + b"\xc0")


@pytest.mark.parametrize("head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_length_that_is_a_lie_costs_no_memory(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_at_router(head)
