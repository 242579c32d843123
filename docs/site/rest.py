"""The reference of REST in Markdown, made from the OpenAPI document that the system itself gives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from reference import page, table

Schema = Mapping[str, Any]

_ABOUT = """\
Every endpoint: what it takes, what it answers, and the [role](security.md#tokens) that its token must have once there
are tokens. A running system gives the same as OpenAPI 3.1 at `GET /openapi.json`. [Running ExeSys](operations.md#rest)
tells more of some, [the clients](clients.md) how to use them from a program. Every refusal is an [error](errors.md),
and leaves nothing behind."""
_EVERYWHERE = {"400", "401", "403", "503"}  # said once, above all endpoints
_LIMITS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "maxLength": "at most {} characters",
}


def rest(document: Mapping[str, Any]) -> str:
    """Return the page of all endpoints, by the first part of their paths, and of the schemas."""
    schemas = document["components"]["schemas"]
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            groups.setdefault(told["tags"][0], []).append(_operation(method, path, told, schemas))
    refusals = _shared(document)
    parts = ["# REST", _ABOUT, "Any of them may refuse with these:", refusals]
    for group, operations in groups.items():
        parts += [f"## /{group}", *operations]
    parts.append("## Schemas")
    parts.append("What is sent and answered, by name.")
    parts += [_described(name, schema) for name, schema in schemas.items()]
    return page(parts)


def _shared(document: Mapping[str, Any]) -> str:
    said = {
        status: answer["description"]
        for methods in document["paths"].values()
        for told in methods.values()
        for status, answer in told["responses"].items()
        if status in _EVERYWHERE
    }
    return table(("status", "when"), sorted(said.items()))


def _operation(method: str, path: str, told: Mapping[str, Any], schemas: Mapping[str, Schema]) -> str:
    given = [(f"`{each['name']}`", each["in"], _value(each["schema"], schemas)) for each in told["parameters"]]
    body = told.get("requestBody")
    if body:
        given.append(("", "body", _kind(body["content"]["application/json"]["schema"])))
    answers = [
        (status, answer["description"], _contents(answer["content"]))
        for status, answer in told["responses"].items()
        if status not in _EVERYWHERE
    ]
    return page(
        [
            f"### {method.upper()} {path}",
            escaped(told["summary"]),
            escaped(told["description"]),
            table(("given", "in", "what"), given),
            table(("status", "when", "answer"), answers),
        ]
    )


def _value(schema: Schema, schemas: Mapping[str, Schema]) -> str:
    """Write what a parameter may be, in place; of a name, which most of them are, the link says it."""
    named = schema["$ref"].rpartition("/")[2] if "$ref" in schema else ""
    return _kind(schemas[named]) if named not in ("", "Name") else _kind(schema)


def _contents(content: Mapping[str, Any]) -> str:
    return " or ".join(
        _kind(each["schema"]) if kind == "application/json" else f"`{kind}`" for kind, each in content.items()
    )


def _described(name: str, schema: Schema) -> str:
    """Return what is said of one schema: its properties, or what it is."""
    needed = set(schema.get("required", ()))
    rows = [
        (f"`{key}`", "yes" if key in needed else "", _kind(each)) for key, each in schema.get("properties", {}).items()
    ]
    about = schema.get("description", "") if rows else _kind(schema)
    return page([f"### {name}", escaped(about), table(("property", "always", "what"), rows)])


def _kind(schema: Schema) -> str:
    """Write a schema in words; one that is named is a link to it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    words = "; ".join(filter(None, (_shape(schema), *_limits(schema))))
    return words or "any JSON"


def _shape(schema: Schema) -> str:
    for joined, word in (("anyOf", " or "), ("allOf", " and ")):
        if joined in schema:
            return word.join(dict.fromkeys(_kind(each) for each in schema[joined]))
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{str(schema['const']).lower()}`"
    if schema.get("type") == "array":
        return f"array of {_kind(schema['items'])}"
    if schema.get("type") == "object":
        return _object(schema)
    return str(schema.get("type", ""))


def _object(schema: Schema) -> str:
    if "properties" in schema:
        return "object of " + ", ".join(f"`{name}`" for name in schema["properties"])
    values = schema.get("additionalProperties")
    return f"map of {_kind(values)}" if isinstance(values, Mapping) else "object"


def _limits(schema: Schema) -> Iterator[str]:
    """Yield what else holds for a value."""
    held = [text.format(_number(schema[key])) for key, text in _LIMITS.items() if key in schema]
    yield " ".join(held)
    if "pattern" in schema:
        yield f"`{schema['pattern']}`"
    if "format" in schema:
        yield str(schema["format"])
    if "examples" in schema and not isinstance(schema["examples"][0], Mapping):
        yield f"such as `{schema['examples'][0]}`"
    if "default" in schema:
        yield f"default `{'null' if schema['default'] is None else schema['default']}`"
    yield escaped(schema.get("description", ""))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def escaped(text: str) -> str:
    """Return text in which angle brackets outside of code are no HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [part.replace("<", "\\<") for part in parts[::2]]
    return "".join(parts)
