"""A command is checked: every field, every option, at any door."""

from __future__ import annotations

import enum
import itertools
import json
import math
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys import codec, command
from exesys.errors import BadCommand, TooLarge

ALPHABET = string.ascii_letters + string.digits + "_.-"
LIMITS = command.Limits()
names = st.text(ALPHABET, min_size=1, max_size=128)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


class Cmd(enum.StrEnum):
    echo = "echo"


def from_json(**body: Any) -> command.Command:
    return command.from_json({key.rstrip("_"): value for key, value in body.items()}, LIMITS, lambda: "new-id")


def refused(field: str, **body: Any) -> str:
    with pytest.raises(BadCommand) as caught:
        from_json(**body)
    assert caught.value.field == field
    return str(caught.value)


# --- names ----------------------------------------------------------------


@given(names)
def test_good_names(name: str) -> None:
    assert command.check_name(name, "cmd") == name


@given(st.text(max_size=140))
def test_any_other_text_is_refused(text: str) -> None:
    if 1 <= len(text) <= 128 and set(text) <= set(ALPHABET):
        return
    with pytest.raises(BadCommand) as caught:
        command.check_name(text, "cmd")
    assert caught.value.field == "cmd"
    assert "A-Z a-z 0-9 _ . -" in caught.value.fix


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (5, "must be a string, not a number"),
        (None, "not null"),
        (True, "not a boolean"),
        (["x"], "not an array"),
        ({}, "not an object"),
        ("", "is empty"),
        ("x" * 129, "has 129 characters"),
        ("a:b", "holds the character ':'"),
        ("a*", "'*'"),
        ("{a", "'{'"),
        ("a\n", r"'\\n'"),
        ("città", "'à'"),
        ("\ud800", r"'\\ud800'"),
    ],
)
@pytest.mark.parametrize("field", ["from", "to", "cmd", "job_id"])
def test_a_bad_name_is_told_what_is_wrong(field: str, value: Any, reason: str) -> None:
    if field == "to" and value == ["x"]:
        return  # a list of names
    with pytest.raises(BadCommand, match=reason) as caught:
        command.from_json({"cmd": "echo", field: value}, LIMITS, lambda: "id")
    assert caught.value.field == field


def test_a_name_of_a_subclass_of_str_becomes_plain() -> None:
    built = command.build(Cmd.echo, Cmd.echo, Cmd.echo, b"", Cmd.echo, {})
    assert {type(part) for part in (built.from_, built.to, built.cmd, built.job_id)} == {str}


@pytest.mark.parametrize("name", ["exesys", "run"])
def test_the_system_keeps_its_own_names(name: str) -> None:
    assert "the system's own" in refused("from", cmd="echo", from_=name)


# --- to -------------------------------------------------------------------


def test_to_may_be_a_list() -> None:
    assert from_json(cmd="echo", to=["D", "E"]).to == "D,E"
    many = [f"n{number}" for number in range(10_000)]
    assert command.check_to(many).split(",") == many


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "lists 0 names"),
        (["a"] * 10_001, "lists 10001 names"),
        (["a", "b", "a"], "lists a name twice"),
        (["a", 5], "must be a string"),
        (["a,b"], "holds the character ','"),
        ("a,b", "holds the character ','"),
    ],
)
def test_bad_lists(value: Any, reason: str) -> None:
    assert reason in refused("to", cmd="echo", to=value)


# --- options --------------------------------------------------------------

GOOD: dict[str, list[Any]] = {
    "queue": ["q", "x" * 128],
    "priority": [0, 9, 4.0],
    "delay_s": [0, 0.5, command.MAX_SECONDS],
    "at": ["2026-01-31T12:00:00Z", "2026-01-31T13:00:00.5+01:00"],
    "timeout_s": [0.01, 1],
    "retries": [0, 1000],
    "backoff_s": [0, 86_400],
    "key": ["k", "customer-7", "x" * 128],
    "key_limit": [1, 10_000],
    "result_ttl_s": [1, 3600.5],
    "notify": ["https://a.example/x", "http://127.0.0.1:1/"],
    "traceparent": [f"00-{'4b' * 16}-{'0f' * 8}-01"],
}
BAD: dict[str, list[Any]] = {
    "queue": ["", 1, None],
    "priority": [-1, 10, 4.5, "4", True, None],
    "delay_s": [-1, math.inf, "1", True],
    "at": ["2026-01-31T12:00:00", "soon", 5, "", None, "2026-13-01T00:00:00Z"],
    "timeout_s": [-1, 0, math.nan, math.inf, 10**400, -(10**400), "5", [], None, command.MAX_SECONDS + 1],
    "retries": [-1, 1001, 1.5, True],
    "backoff_s": [-0.1, 86_401],
    "key": ["", "a=b", "a:b", 1, None],
    "key_limit": [0, 10_001, 1.5, "1", True],
    "result_ttl_s": [0, 0.5],
    "notify": ["", "a.example", "ftp://a.example/", "http://u:p@a.example/", "http://a b/", 5, None, ["http://a/"]],
    "traceparent": [5, None, ["00"]],  # of malformed text: see test_trace.py
}


def test_every_option_is_tried() -> None:
    assert GOOD.keys() == BAD.keys() == command.OPTIONS.keys()


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in GOOD.items() for value in values])
def test_good_options(key: str, value: Any) -> None:
    assert from_json(cmd="echo", **{key: value}).options == {key: value}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_bad_options(key: str, value: Any) -> None:
    assert f"`{key}`" in refused(key, cmd="echo", **{key: value})


def test_at_and_delay_exclude_each_other() -> None:
    refused("at", cmd="echo", at="2026-01-31T12:00:00Z", delay_s=1)


@given(st.datetimes(timezones=st.timezones()))
def test_at_is_read_to_the_millisecond(moment: Any) -> None:
    try:
        text = moment.isoformat()
        due = command.due_ms(text)
    except BadCommand:
        assert moment.utcoffset().microseconds or moment.utcoffset().seconds % 60  # no offset of RFC 3339
    else:
        assert due == int(moment.timestamp() * 1000)


def test_at_in_two_zones_is_one_moment() -> None:
    assert command.due_ms("1970-01-01T00:00:01Z") == 1000
    assert command.due_ms("1970-01-01T01:00:01+01:00") == 1000


# --- the JSON object ------------------------------------------------------


def test_what_is_left_out() -> None:
    built = from_json(cmd="test_cmd")
    assert built == ("client", "end_job", "test_cmd", codec.pack(None), "new-id", {})


def test_the_command_of_the_document() -> None:
    built = from_json(
        from_="testclient",
        to="testjob",
        cmd="test_cmd",
        data="senatoremonti",
        job_id="16fd2706-8baf-433b-82eb-8c7fada847da",
    )
    assert built.from_ == "testclient"
    assert built.to == "testjob"
    assert codec.unpack(built.data) == "senatoremonti"
    assert built.job_id == "16fd2706-8baf-433b-82eb-8c7fada847da"


@pytest.mark.parametrize(
    ("key", "close"), [("timeout", "timeout_s"), ("job-id", "job_id"), ("prio", "priority"), ("Data", "data")]
)
def test_an_unknown_key_names_the_nearest(key: str, close: str) -> None:
    assert f"Did you mean `{close}`?" in refused(key, **{"cmd": "echo", key: 1})


def test_an_unknown_key_that_is_like_none_lists_them() -> None:
    assert "Known keys: from, to, cmd, data, job_id, queue" in refused("xyzzy", cmd="echo", xyzzy=1)


def test_an_unknown_key_is_blamed_for_a_missing_cmd() -> None:
    assert "Did you mean `cmd`?" in refused("cmdd", cmdd="echo")
    assert "`cmd` is missing" in refused("cmd", data=1)


def test_half_a_surrogate_pair_in_a_key_can_be_answered() -> None:
    with pytest.raises(BadCommand) as caught:
        command.from_json({"cmd": "echo", "\ud800": 1}, LIMITS, lambda: "id")
    for part in caught.value.problem:
        part.encode()


def test_deep_and_large_data() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    assert "nested deeper than 100" in refused("data", cmd="echo", data=deep)
    with pytest.raises(TooLarge, match="1,048,581 bytes; at most 1,048,576"):
        from_json(cmd="echo", data="x" * (1 << 20))


@given(st.dictionaries(st.sampled_from(["from", "to", "cmd", "data", "job_id", *command.OPTIONS, "x"]), json_values))
def test_whatever_json_says_one_kind_of_error(body: dict[str, Any]) -> None:
    try:
        built = command.from_json(body, LIMITS, lambda: "id")
    except (BadCommand, TooLarge) as error:
        json.dumps(error.problem).encode()
    else:
        again = command.build(
            built.from_, built.to.split(","), built.cmd, built.data, built.job_id, dict(built.options)
        )
        assert again == built


@given(json_values)
def test_only_objects_are_commands(body: Any) -> None:
    if not (isinstance(body, dict) and "cmd" in body):
        with pytest.raises(BadCommand):
            command.from_json(body, LIMITS, lambda: "id")


def test_the_digest_tells_work_apart() -> None:
    cases = itertools.product(["a", "b", "ab"], [b"", b"a", b"b", b"\0a"])
    digests = {command.build("f", "t", cmd, data, "id", {}).digest for cmd, data in cases}
    assert len(digests) == 12
    assert all(len(digest) == 9 for digest in digests)
    one = command.build("f", "t", "c", b"d", "1", {"retries": 1}).digest
    other = command.build("f", "t", "c", b"d", "2", {}).digest
    assert one == other


@pytest.mark.parametrize(("ref", "parts"), [("A:id", ("A", "id")), ("C>D:id", ("C", "id")), ("C>D,E:x", ("C", "x"))])
def test_a_ref_is_taken_apart(ref: str, parts: tuple[str, str]) -> None:
    assert command.REF.fullmatch(ref)
    assert command.parts_of(ref) == parts


@pytest.mark.parametrize("ref", ["", "A", ":id", "A:", "A:id:start", "A>:id", "A B:id", "A:id\n"])
def test_no_refs(ref: str) -> None:
    assert not command.REF.fullmatch(ref)


# --- workflows ------------------------------------------------------------


def workflow(*bodies: Any) -> list[command.Command]:
    return command.workflow_from_json(bodies, LIMITS, lambda: "new-id")


def test_the_commands_of_a_workflow_have_one_job_id() -> None:
    made = workflow({"from": "a", "to": "b", "cmd": "f"}, {"from": "b", "cmd": "g", "data": [1]})
    assert [(each.from_, each.to, each.cmd, each.job_id) for each in made] == [
        ("a", "b", "f", "new-id"),
        ("b", "end_job", "g", "new-id"),
    ]
    named = workflow({"from": "a", "to": "b", "cmd": "f"}, {"from": "b", "cmd": "g", "job_id": "mine"})
    assert {each.job_id for each in named} == {"mine"}
    assert workflow() == []


@pytest.mark.parametrize(
    ("bodies", "field", "said"),
    [
        ([{"cmd": "f", "job_id": "x"}, {"cmd": "f", "job_id": "y"}], "job_id", "two jobs, 'x' and 'y'"),
        ([{"cmd": "f", "job_id": 5}, {"cmd": "f"}], "job_id", "`job_id` must be a string"),
        ([{"cmd": "f"}, {"data": 1}], "cmd", "command 2 of 2: `cmd` is missing"),
        ([5, {"cmd": "f"}], "", "command 1 of 2: a command must be a JSON object, not a number"),
        ([{"cmd": "f"}, {"cmd": "f", "priorty": 1}], "priorty", "command 2 of 2: the key 'priorty' is unknown"),
    ],
)
def test_a_workflow_says_which_command_is_wrong(bodies: list[Any], field: str, said: str) -> None:
    with pytest.raises(BadCommand) as caught:
        workflow(*bodies)
    assert (caught.value.field, said in caught.value.message) == (field, True), caught.value


def test_a_workflow_says_which_command_is_too_large() -> None:
    with pytest.raises(TooLarge, match="command 2 of 2: the data has"):
        workflow({"cmd": "f"}, {"cmd": "f", "data": "x" * LIMITS.data_bytes})
