"""JSON in and out: errors that say where, and answers that any client can read."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import uuid
from typing import Any

import bottle
import pytest
from bottle import HTTPError, LocalRequest
from hypothesis import given
from hypothesis import strategies as st

from exesys import http
from exesys.errors import BadCommand, BadJson, Conflict, NotFound, QueueFull, TooLarge, Unavailable

# The bodies of the two `curl` calls in the user's document, as a shell hands them over.
SEED = (
    b'{"from":"testclient",\\\n\t"to:","testjob",\n\t"cmd":"test_cmd",\\ \n\t"data": "senatoremonti",\\\n'
    b'\t"job_id":"16fd2706-8baf-433b-82eb-8c7fada847da"\\\n\t}'
)
SEED_JOINED = (
    b'{"from":"testclient","to:","testjob","cmd":"test_cmd","data": "senatoremonti",'
    b'"job_id":"16fd2706-8baf-433b-82eb-8c7fada847da"}'
)


def why(body: bytes) -> BadJson:
    with pytest.raises(BadJson) as caught:
        http.parse_json(body)
    return caught.value


# --- in -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, "x", null, true]}', {"a": [1, 2.5, "x", None, True]}),
        (b"\xef\xbb\xbf{}", {}),
        (b' \n "citt\xc3\xa0" ', "città"),
        (b'"\\ud83d\\ude00"', "😀"),
        (b"12345678901234567890123", 12345678901234567890123),
    ],
)
def test_json_is_read(body: bytes, value: Any) -> None:
    assert http.parse_json(body) == value


def test_the_documents_own_call_is_told_where_it_breaks() -> None:
    """The backslashes that are to continue the line stand inside quotes, and so in the body."""
    error = why(SEED)
    assert "line 1, column 22" in error.message
    assert '"testclient", ⟨here⟩ \\' in error.message
    assert "double quotes" in error.fix


def test_the_documents_call_without_its_backslashes_is_told_of_the_missing_colon() -> None:
    error = why(SEED_JOINED)
    assert "Expecting ':' delimiter at line 1, column 27" in error.message
    assert '"to:" ⟨here⟩ ,"testjob"' in error.message
    assert '{"to": "testjob"}' in error.fix


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"nonsense", "line 1, column 1"),
        (b'{"a": 1', "line 1, column 8"),
        (b'{"a": 1}\n\n{"b": 2}', "line 3, column 1"),
        (b"{'a': 1}", "line 1, column 2"),
        (b'{"a": 1,}', "line 1, column"),
        (b'{"a": "x\ny"}', "line 1, column 9"),
        (b'["\\x"]', "line 1, column 3"),
    ],
)
def test_bad_json_is_told_where_it_breaks(body: bytes, where: str) -> None:
    assert where in why(body).message


@pytest.mark.parametrize("body", [b"", b" \r\n\t"])
def test_an_empty_body_is_called_empty(body: bytes) -> None:
    error = why(body)
    assert error.message == "the body is empty."
    assert "cmd" in error.fix


def test_several_values_are_told_to_go_into_an_array() -> None:
    assert "array" in why(b'{"cmd": "a"}\n{"cmd": "b"}').fix
    assert "array" not in why(b'{"cmd": "a" "b"}').fix


def test_a_long_body_is_not_quoted_at_length() -> None:
    assert len(why(b'{"a": "' + b"x" * 100_000 + b'" "b"').message) < 300


def test_a_body_that_is_not_utf8_is_told_the_byte() -> None:
    assert "byte 7 is 0xff" in why(b'{"a": "\xff"}').message
    assert "not UTF-8" in why('{"a": "à"}'.encode("latin-1")).message


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused_by_name(name: str) -> None:
    assert f"{name} is not a JSON value" in why(f'{{"data": [{name}]}}'.encode()).message


def test_a_number_of_ten_thousand_digits_is_refused() -> None:
    why(b"[" + b"1" * 10_000 + b"]")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":['])
def test_deep_nesting_is_refused_and_harms_nobody(opening: bytes) -> None:
    error = why(opening * 100_000)
    assert error.status == 400


@given(st.binary(max_size=60))
def test_any_body_is_a_value_or_one_error(body: bytes) -> None:
    try:
        http.parse_json(body)
    except BadJson as error:
        http.refuse(error)


# --- parameters -----------------------------------------------------------------


def query(text: str) -> Any:
    return LocalRequest({"QUERY_STRING": text}).query


@pytest.mark.parametrize("text", ["", "wait=5", "wait", "limit=1&wait=", "&&"])
def test_known_parameters_are_let_through(text: str) -> None:
    http.check_query(query(text), ("wait", "limit"))


@pytest.mark.parametrize(
    ("text", "known", "field", "fix"),
    [
        ("limt=5", ("limit", "state"), "limt", "Did you mean `limit`?"),
        ("wait=1&wiat=5", ("wait",), "wiat", "Did you mean `wait`?"),
        ("zzz", ("limit", "state"), "zzz", "Known parameters: limit, state."),
        ("wait=5", (), "wait", "Send none: this endpoint has none."),
        ("=5", ("limit",), "", "Known parameters: limit."),
        ("%C3%A0=1", ("wait",), "à", "Known parameters: wait."),
        ("%FF=1", ("wait",), "\ufffd", "Known parameters: wait."),
        ("x" * 5000, ("wait",), "x" * 60, "Known parameters: wait."),
        ("wait=1&wait=2", ("wait",), "wait", "Give it once."),
    ],
)
def test_an_unknown_parameter_is_named_with_the_nearest(
    text: str, known: tuple[str, ...], field: str, fix: str
) -> None:
    with pytest.raises(BadCommand) as caught:
        http.check_query(query(text), known)
    assert (caught.value.field, caught.value.fix) == (field, fix)
    assert f"{field!r} is unknown" in caught.value.message or "more than once" in caught.value.message


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("", None),
        ("respond-async", None),
        ("waiting=5", None),
        ("wait=5", "5"),
        ("respond-async, Wait = 5; more=1", "5"),
        ('wait="5"', "5"),
        ("wait", ""),
        ("respond-async; wait=5", None),  # a parameter of the other preference
    ],
)
def test_a_preference_is_read(header: str, value: str | None) -> None:
    assert http.preference("wait", header) == value


# --- out ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"EOJ": [1, "x", None]}, '{"EOJ":[1,"x",null]}'),
        ("città", '"città"'),
        (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), '"2026-01-02T03:04:05+00:00"'),
        (uuid.UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        (decimal.Decimal("1.50"), '"1.50"'),
        (b"\x00\xff", '"AP8="'),
        ({3, 1, 2}, "[1,2,3]"),
        ({(1, 2): "x"}, None),
        ({1: "x", None: "y", b"k": "z"}, None),
        ([math.nan, math.inf, -math.inf], '["nan","inf","-inf"]'),
        ({math.nan}, '["nan"]'),
        ({"deep": [frozenset({math.inf})]}, '{"deep":[["inf"]]}'),
        ({"deep": [{"er": math.nan}]}, '{"deep":[{"er":"nan"}]}'),
        ("half a pair: \ud800", '"half a pair: \\ud800"'),
        (2**64 - 1, "18446744073709551615"),
    ],
)
def test_a_result_of_any_type_is_json(value: Any, text: str | None) -> None:
    written = http.to_json(value).decode()
    assert text is None or written == text + "\n"
    json.loads(written, parse_constant=pytest.fail)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=5)
    | st.binary(max_size=5)
    | st.uuids()
    | st.decimals(allow_nan=True).filter(lambda number: not number.is_snan())
    | st.datetimes()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3) | st.frozensets(scalars, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
def test_whatever_a_function_returns_is_json(value: Any) -> None:
    json.loads(http.to_json({"result": {"EOJ": value}}), parse_constant=pytest.fail)


# --- errors ---------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x", "-1", "nan", "31622401"])
def test_a_number_that_will_not_do_is_told_what_will(text: str) -> None:
    with pytest.raises(BadCommand) as caught:
        http.number("older_s", text, 0, 31_622_400)
    assert (caught.value.message, caught.value.fix) == (f"`older_s` is {text!r}.", "Give a number, 0 to 31,622,400.")
    with pytest.raises(BadCommand, match=r"Give a number, 0\.1 to 5\."):
        http.number("wait", text, 0.1, 5.0)


def test_an_error_has_four_parts_and_its_status() -> None:
    answer = http.refuse(Conflict("another data.", field="job_id", fix="Use a new one."))
    assert answer.status_code == 409
    assert json.loads(answer.body) == {
        "error": {"code": "conflict", "message": "another data.", "field": "job_id", "fix": "Use a new one."}
    }
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("error", "retry"),
    [(QueueFull("full"), True), (Unavailable("away"), True), (NotFound("no"), False), (TooLarge("no"), False)],
)
def test_who_is_to_come_again_is_told_when(error: Any, retry: bool) -> None:
    assert ("Retry-After" in http.refuse(error).headers) is retry


def test_an_error_may_quote_half_a_surrogate_pair() -> None:
    answer = http.refuse(BadJson("the key '\ud800' is unknown", field="\ud800"))
    assert json.loads(answer.body)["error"]["field"] == "\ud800"


def test_a_page_that_is_not_there_and_a_wrong_method_are_json_too() -> None:
    answer, error = asked("GET", "/no/page", HTTPError(404, "Not found"))
    assert (answer.status_code, error["code"]) == (404, "not_found")
    assert error["message"] == "there is nothing at /no/page."
    answer, error = asked("DELETE", "/sys_cmd", HTTPError(405, "Method not allowed.", Allow="POST"))
    assert (answer.status_code, error["code"], answer.headers["Allow"]) == (405, "method_not_allowed", "POST")
    assert (error["message"], error["fix"]) == ("/sys_cmd does not take DELETE.", "Use POST.")
    answer, error = asked("GET", "/jobs", HTTPError(500, "oops"))
    assert (answer.status_code, error["code"]) == (500, "internal")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/", ""),
        ("/zzz", ""),
        ("/sys_cmd/", "/sys_cmd"),
        ("/syscmd", "/sys_cmd"),
        ("/SYS_CMD", "/sys_cmd"),
        ("/job", "/jobs"),
        ("/jobs/", "/jobs"),
        ("/jobs/a/logs", ""),
        ("/jobs/a/", ""),
        ("/" + "x" * 9000, ""),
    ],
)
def test_a_page_that_is_not_there_is_told_which_are(path: str, meant: str) -> None:
    _, error = asked("GET", path, HTTPError(404, "Not found"))
    assert error["fix"].endswith("Known: POST /sys_cmd, GET /jobs, GET /jobs/<job_id>.")
    assert error["fix"].partition("Known:")[0] == (f"Did you mean {meant}? " if meant else "")
    assert len(error["message"]) < 100


def asked(method: str, path: str, error: HTTPError) -> tuple[Any, dict[str, str]]:
    """Return the answer for an error of Bottle's over such a request."""
    bottle.request.bind({"REQUEST_METHOD": method, "PATH_INFO": path})
    answer = http.on_error([("POST", "/sys_cmd"), ("GET", "/jobs"), ("GET", "/jobs/<job_id>")])(error)
    return answer, json.loads(answer.body)["error"]
