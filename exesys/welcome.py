"""What a person is told once a system runs, and how it is called and stopped here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from exesys import apps, home, keystore, servers
from exesys.addresses import masked
from exesys.config import Config
from exesys.proof import Proof

_FIRST = """-H "Content-type: application/json" -X POST URL/sys_cmd -d '{"from":"testclient",\
"to":"testjob","cmd":"test_cmd","data":"senatoremonti","job_id":"16fd2706-8baf-433b-82eb-8c7fada847da"}'"""


def called(config: Config, root: str = "") -> str:
    """Return how a person calls ExeSys here."""
    roots = [Path(root or config.root), Path(__file__).resolve().parent.parent]  # an ini may lie elsewhere
    script = next((path for each in roots if (path := each / "bin" / "exesys").is_file()), None)
    if script is None:
        return "exesys"
    return "bin/exesys" if script.parent.parent == Path.cwd() else shlex.quote(str(script))


def down_text(config: Config, root: str = "") -> str:
    """Return how a person stops the system of this home, or that of another project, `root`, which holds it."""
    default = config.home == config.root / "var" and not root
    return f"{'' if default else f'EXESYS_HOME={shlex.quote(str(config.home))} '}{called(config, root)} down"


def welcome(config: Config, proof: Proof | None, listed: list[dict[str, Any]]) -> str:
    """Say where the system is reached, how it is tried and stopped.

    `proof` is what came of the start, None when it ran already; `listed` are
    the application servers, as REST tells them.
    """
    record = home.read_record(config)
    if record is None:  # it was stopped meanwhile
        return f"ExeSys in {config.home} is stopped."
    started = home.as_started(config, record)
    if config.joins:
        lines = [
            f"This host works for {config.bus_endpoint}, in {config.home}",
            *([f"  Proof    {proof.message}"] if proof else []),
            "  Functions here find ctx.redis and ctx.mongo where [redis] data_url and [mongo] uri say.",
            "",
            f"Stop it with: {down_text(config)}",
        ]
        return "\n".join(lines)
    mongo = "none; functions that ask for ctx.mongo are told to set [mongo] uri"
    if record.mongo:
        mongo = f"{record.mongo}, {masked(started.mongo.uri)}" if not config.mongo.uri else record.mongo
    if record.mongo.startswith(servers.TRIAL_MONGO):
        mongo += "\n           for trials only: install mongod, or set [mongo] uri, before you rely on it"
    redis = record.redis if config.redis.url else f"{record.redis}, {started.redis_url}"
    header = ' -H "Authorization: Bearer $EXESYS_TOKEN"' if keystore.read(config) else ""
    lines = [
        f"ExeSys runs in {config.home}" if proof else f"ExeSys runs already in {config.home}",
        f"  REST     {config.rest_url}",
        f"  Web      {config.web_url}",
        f"  Redis    {redis}",
        f"  MongoDB  {mongo}",
        *([f"  Apps     {apps.in_words(listed)}"] if listed else []),
        *([f"  Proof    {proof.message}"] if proof else []),
        "",
        "Try it, and send the same again for the result:",
        f"  curl{header} " + _FIRST.replace("URL", config.rest_url),
        "",
        f"Stop it with: {down_text(config)}",
    ]
    return "\n".join(lines)
