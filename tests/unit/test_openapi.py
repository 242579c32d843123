"""The OpenAPI document says what the table of endpoints says, and nothing else."""

from __future__ import annotations

import inspect
import json
import re
import typing
from typing import Any

import jsonschema_rs
import pytest

from exesys import command, openapi, queues, schedule, schemas
from exesys.config import Config, Limits
from exesys.daemons.rest import Api
from exesys.elsewhere import Elsewhere
from exesys.endpoints import runners
from exesys.endpoints.events import EventsApi
from exesys.http import JSON, Endpoint
from exesys.tokens import Role

NOBODY: Any = None  # no endpoint is called here
LIMITS = Limits(array=7, depth=9)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Endpoint, ...]:
    home = tmp_path_factory.mktemp("home")
    config = Config(home, home)
    readers: Elsewhere[Any] = Elsewhere(config, NOBODY, NOBODY)
    events = EventsApi(NOBODY, readers, readers, NOBODY, 0)
    return Api(config, NOBODY, readers, NOBODY, NOBODY, events).endpoints()


@pytest.fixture(scope="module")
def document(table: tuple[Endpoint, ...]) -> dict[str, Any]:
    return openapi.document(table, LIMITS, "1.2.3", "http://here", True)


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): told for path, item in document["paths"].items() for method, told in item.items()}


def written(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.method, re.sub(r"<(\w+)>", r"{\1}", endpoint.path)


def test_it_has_every_endpoint_once_and_no_other(table: Any, document: Any) -> None:
    assert len(table) == len(set(map(written, table))) > 30
    assert set(operations(document)) == set(map(written, table))
    names = [told["operationId"] for told in operations(document).values()]
    assert len(set(names)) == len(names)


def test_an_operation_says_what_its_endpoint_does(table: Any, document: Any) -> None:
    for endpoint in table:
        told = operations(document)[written(endpoint)]
        assert told["summary"] == inspect.getdoc(endpoint.handler).partition("\n")[0], endpoint.path
        assert told["x-role"] == endpoint.role.name
        assert ("security" in told) == (endpoint.role is not Role.anyone)
        named = {(each["in"], each["name"]) for each in told["parameters"]}
        assert {name for place, name in named if place == "query"} == set(endpoint.parameters)
        assert {name for place, name in named if place == "header"} == set(endpoint.headers)
        assert {name for place, name in named if place == "path"} == set(re.findall(r"<(\w+)>", endpoint.path))
        handled = set(inspect.signature(endpoint.handler).parameters)
        assert {name for place, name in named if place == "path"} <= handled, endpoint.path
        assert ("requestBody" in told) == bool(endpoint.body)


def test_every_endpoint_says_what_it_answers(table: Any, document: Any) -> None:
    for endpoint in table:
        told = operations(document)[written(endpoint)]["responses"]
        assert [status for status in endpoint.answers if status < 300], endpoint.path
        expected = {*endpoint.answers, *endpoint.errors, 400, 503}
        expected |= set() if endpoint.role is Role.anyone else {401, 403, 429}
        expected |= {413, 415} if endpoint.body else set()
        assert {int(status) for status in told} == expected
        for status, answer in told.items():
            assert set(answer["content"]) == (set(endpoint.kinds) if int(status) < 400 else {JSON})
            assert ("Retry-After" in answer.get("headers", {})) == (status in ("429", "503"))


def test_without_tokens_none_is_needed(table: Any) -> None:
    told = openapi.document(table, LIMITS, "1", "http://here", False)
    assert all("security" not in each for each in operations(told).values())


def test_every_schema_is_one_and_is_there(document: Any) -> None:
    known = document["components"]["schemas"]
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named == set(known), "one is named that is not there, or one is not used"
    for schema in known.values():
        assert jsonschema_rs.meta.is_valid(schema)


def test_limits_are_those_of_the_settings(document: Any) -> None:
    known = document["components"]["schemas"]
    assert known["Commands"]["anyOf"][1]["maxItems"] == 7
    assert "9 deep" in known["Command"]["properties"]["data"]["description"]


def test_what_is_sent_has_the_names_by_which_it_is_checked(document: Any) -> None:
    known = document["components"]["schemas"]
    assert set(known["Command"]["properties"]) == {*command.FIELDS, *command.OPTIONS}
    assert set(known["NewTimer"]["properties"]) == {"name", *schedule.FIELDS}
    assert set(known["QueueSettings"]["properties"]) == set(queues.SETTINGS)
    assert set(known["NewRunner"]["properties"]) == set(runners.KEYS)
    assert list(typing.get_type_hints(command.Options)) == list(command.OPTIONS)


EDGES = [
    (name, value)
    for name, rule in command.OPTIONS.items()
    if isinstance(rule, (command.Number, command.Whole))
    for value in (rule.low, rule.high, rule.low - 1, rule.high + 1, "1", True, None)
]


@pytest.mark.parametrize(("name", "value"), [*EDGES, ("queue", "a b"), ("queue", "a"), ("notify", "ftp://a/")])
def test_an_option_is_refused_where_its_schema_does(name: str, value: Any) -> None:
    try:
        command.check_options({name: value})
        taken = True
    except command.BadCommand:
        taken = False
    assert jsonschema_rs.Draft202012Validator(command.OPTIONS[name].schema).is_valid(value) == taken


def test_text_fits_from_end_to_end() -> None:
    rule = jsonschema_rs.Draft202012Validator(schemas.whole("ab|c"))
    assert [rule.is_valid(text) for text in ("ab", "c", "abc", "xc", "")] == [True, True, False, False, False]
