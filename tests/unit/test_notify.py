"""The option `notify` at the router's door, and what people are shown of it and of jobs that failed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from unit.bench import Bench, item
from unit.world import CATALOGUE, CONFIG

from exesys import codec, views
from exesys.bus import messages as m
from exesys.catalogue import Catalogue, FunctionInfo
from exesys.config import Callbacks
from exesys.errors import BadCommand
from exesys.functions import function
from exesys.states import State
from exesys.store.reader import Callback, Step

URL = "http://a.example/x"
ALLOWED = dataclasses.replace(CONFIG, callbacks=Callbacks(hosts=("a.example", "10.0.0.0/8")))


def refusal(bench: Bench, client: bytes) -> Any:
    [ack] = [message for message in bench.said(client) if isinstance(message, m.SubmitAck)]
    return ack.answers[0].body


# --- the door -------------------------------------------------------------------


def test_a_listed_host_is_let_in_and_stands_in_the_record() -> None:
    bench = Bench(ALLOWED)
    client = bench.client()
    bench.submit(
        client, item(1, "j", notify=False, **{}), m.Item(2, "b", "x", "double", b"\xc0", "k", {"notify": URL}, False)
    )
    turn = bench.turn()
    assert turn is not None
    assert [placed.options.get("notify") for placed in turn.placed] == [None, URL]
    assert bench.store.db.values["b:k:start"]["notify"] == URL.encode()


@pytest.mark.parametrize("url", ["http://b.example/", "http://127.0.0.1/", "http://11.0.0.1/", "gopher://a.example/"])
@pytest.mark.parametrize("flow", [0, -1, 1])
def test_another_is_refused_before_the_store_hears_of_it(url: str, flow: int) -> None:
    bench = Bench(ALLOWED)
    client = bench.client()
    before = bench.store.dump()
    bench.submit(client, m.Item(1, "b", "end_job", "double", b"\xc0", "k", {"notify": url}, False, flow))
    code, _, field, fix = refusal(bench, client)
    assert (code, field) == ("bad_field", "notify")
    assert fix
    assert bench.turn() is None
    assert bench.store.dump() == before


def test_a_functions_own_url_holds_where_the_command_has_none_and_is_checked_too() -> None:
    info = FunctionInfo("double", "w", "", "(data)", {"notify": URL}, "w.py")
    known = Catalogue({"w.double": info}, {})
    bench = Bench(ALLOWED, known=known)
    client = bench.client()
    other = {"notify": "http://10.0.0.5/"}
    bench.submit(client, item(1, "j"), m.Item(2, "b", "x", "double", b"\xc0", "k", other, False))
    turn = bench.turn()
    assert turn is not None
    assert [placed.options["notify"] for placed in turn.placed] == [URL, other["notify"]]
    closed = Bench(CONFIG, known=known)
    stranger = closed.client()
    closed.submit(stranger, item(1, "j"))
    assert refusal(closed, stranger)[:3:2] == ["bad_field", "notify"]
    assert CATALOGUE.functions, "the world's own functions name none"


def test_the_decorator_takes_it_and_checks_its_form() -> None:
    def told(data: Any) -> None: ...

    assert function(notify=URL)(told) is told
    with pytest.raises(BadCommand, match="no http or https URL"):
        function(notify="a.example")


# --- what is shown ----------------------------------------------------------------


def step(state: State = State.data_available, ref: str = "a:j", **fields: Any) -> Step:
    packed = {"to": "end_job", "cmd": "f", "notify": URL, "attempt": 2, **fields}
    return Step(ref, state, {name: v if isinstance(v, bytes) else str(v).encode() for name, v in packed.items()})


def shown(each: Step, callback: Callback | None) -> Any:
    [told] = views.job("j", [each], callbacks={each.ref: callback} if callback else {})["steps"]
    return told["notify"]


def test_how_a_callback_goes_is_shown() -> None:
    assert shown(step(State.start), None) == {"url": URL, "state": "waiting", "tries": 0}
    waiting = Callback("waiting", 2, "the answer was 500.", 1700)
    expected = {"url": URL, "state": "waiting", "tries": 2, "error": "the answer was 500.", "next_ms": 1700}
    assert shown(step(), waiting) == expected
    assert shown(step(), Callback("sent", 1, "", None)) == {"url": URL, "state": "sent", "tries": 1}
    assert shown(step(), None) == {"url": URL}, "its note has expired"
    assert "notify" not in views.job("j", [step()])["steps"][0], "a list does not ask"


def test_why_says_what_was_not_told() -> None:
    said = views.untold([step()], {"a:j": Callback("waiting", 1, "no answer within 5 s.", 1700)})
    assert said == [f"{URL} has still to be told of its end, that of a (tries 1, the last: no answer within 5 s)"]
    said = views.untold([step()], {"a:j": Callback("failed", 10, "the answer was 500.", None)})
    assert said == [f"{URL} could not be told of its end, that of a (tries 10, the last: the answer was 500)"]
    assert views.untold([step()], {"a:j": Callback("sent", 1, "", None)}) == []
    assert views.untold([step(State.start)], {"a:j": Callback("failed", 1, "of the time before.", None)}) == []
    assert views.untold([step()], {}) == []


def test_a_step_that_failed_is_shown_in_a_line() -> None:
    failure = codec.pack({"type": "ValueError", "message": "no", "traceback": "…"})
    assert views.dead(1700, step(State.error, "a>x,y:j", to="x,y", error=failure)) == {
        "failed_ms": 1700,
        "job_id": "j",
        "from": "a",
        "to": ["x", "y"],
        "cmd": "f",
        "attempts": 2,
        "error": {"type": "ValueError", "message": "no"},
    }
