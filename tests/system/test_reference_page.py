"""The commands that the page of the REST interface shows, as typed into a shell. tests/browser has the page itself."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from harness import System

import exesys

WORDS = Path(exesys.__file__).parent / "web" / "reference" / "words.js"
# Prints what the page would show of each operation of the document on stdin.
SCRIPT = """
import { readFileSync } from "node:fs";
const { address, curl, example, operations, JSON_KIND } = await import(process.argv[1]);
const [rest, document] = JSON.parse(readFileSync(0, "utf8"));
const shown = [...operations(document)].map(({ path, method, told }) => {
  const schema = told.requestBody?.content[JSON_KIND].schema;
  const body = schema && example(schema, document.components.schemas);
  const url = address(rest, path, told.parameters, (name) => (name === "job_id" ? "it's a job" : ""));
  return { path, method, schema, body, curl: curl(method, url, { body }) };
});
console.log(JSON.stringify(shown));
"""


@pytest.fixture(scope="module")
def document(shared: System) -> dict[str, Any]:
    found: dict[str, Any] = shared.get("/openapi.json").body
    return found


@pytest.fixture(scope="module")
def commands(shared: System, document: dict[str, Any], need: Callable[[Any, str], None]) -> list[dict[str, Any]]:
    need(shutil.which("node"), "Node.js")
    told = json.dumps([f"http://127.0.0.1:{shared.rest_port}", document])
    words = ["node", "--input-type=module", "--eval", SCRIPT, WORDS.as_uri()]
    done = subprocess.run(words, input=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown: list[dict[str, Any]] = json.loads(done.stdout)
    return shown


def test_each_operation_has_a_command(commands: list[dict[str, Any]], document: dict[str, Any]) -> None:
    there = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert {(each["method"], each["path"]) for each in commands} == there


def test_the_commands_ask_what_there_is(shared: System, commands: list[dict[str, Any]]) -> None:
    reading = [each for each in commands if each["method"] == "GET" and "events" not in each["path"]]
    assert len(reading) > 15
    for each in reading:
        program, url = shlex.split(each["curl"])
        assert program == "curl"
        path = url.removeprefix(f"http://127.0.0.1:{shared.rest_port}")
        answer = shared.get(path)
        # A job has no such name, and of what is named by example there is nothing.
        expected = 400 if "{job_id}" in each["path"] else 404 if "{" in each["path"] else 200
        assert answer.status == expected or each["path"] in ("/queues/{name}", "/runners/{type}"), (each, answer)


def test_what_they_send_is_what_is_taken(commands: list[dict[str, Any]], document: dict[str, Any]) -> None:
    sending = [each for each in commands if "schema" in each]
    assert len(sending) >= 5
    for each in sending:
        words = shlex.split(each["curl"])
        assert json.loads(words[words.index("-d") + 1]) == each["body"]
        schema = {**each["schema"], "components": document["components"]}
        assert jsonschema_rs.Draft202012Validator(schema).is_valid(each["body"]), each
