"""What hostile peers send: good messages of every kind with something wrong in them, and bytes that are none.

All of it comes from `random.Random`, so that a seed gives the same again. Nothing here is accepted: what is
to be stored names a function that there is not, and settings are spoilt beyond repair.
"""

import json
import random
import typing
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgpack

from exesys.bus import messages as m
from exesys.bus import wire

KINDS = (
    *(m.Hello, m.Submit, m.Status, m.Change, m.Start, m.Tune, m.Result, m.Heartbeat, m.Telling, m.Exits),
    *(m.Stop, m.Mend, m.Sync, m.Drain, m.Bye),
)
NUMBERS = [0, -1, 1, 255, 1 << 31, -(1 << 31), 1 << 53, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1]
FLOATS = [0.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "a", "client", "a:b", "x" * 2000, "é☂😀", "\0", "exesys", "run", "{}", "*", "../..", "0" * 16, "\ud7ff"]
WORDS = ["queue", "timer", "merge", "put", "remove", "cancel", "restart", "functions", "no_such", "end_job"]
MOST_CONTINUED = 4 << 10


def anything(dice: random.Random, depth: int = 0, texts: Sequence[str] = TEXTS) -> Any:
    """Make any value that msgpack can carry, with some of these texts."""
    kind = dice.randrange(10 if depth < 4 else 7)
    if kind == 7:
        return [anything(dice, depth + 1, texts) for _ in range(dice.randrange(4))]
    if kind == 8:
        return {dice.choice(texts): anything(dice, depth + 1, texts) for _ in range(dice.randrange(4))}
    if kind == 9:
        return msgpack.ExtType(dice.randrange(128), dice.randbytes(dice.choice([0, 1, 4, 8, 12, 16])))
    return [
        None,
        dice.random() < 0.5,
        dice.choice(NUMBERS),
        dice.choice(FLOATS),
        dice.choice(texts),
        dice.randbytes(dice.choice([0, 1, 100])),
        {},
    ][kind]


def well_formed(dice: random.Random, kind: Any) -> Any:
    """Make a value that its annotation allows: a whole message of a kind, or a part of one."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        return tuple(well_formed(dice, typing.get_args(kind)[0]) for _ in range(dice.choice([0, 1, 1, 2, 5])))
    if origin is dict:
        return {dice.choice([*TEXTS, *WORDS]): anything(dice) for _ in range(dice.randrange(3))}
    if isinstance(kind, type) and issubclass(kind, tuple):
        return kind(**{name: well_formed(dice, hint) for name, hint in typing.get_type_hints(kind).items()})
    if kind is int:
        return dice.choice(NUMBERS) if dice.random() < 0.5 else dice.randrange(10)
    if kind is float:
        return dice.choice(FLOATS)
    if kind is str:
        return dice.choice(TEXTS if dice.random() < 0.5 else WORDS)
    if kind is bytes:
        return dice.choice([b"", b"\xc0", b"\xc1", b"\x81\xa3EOJ\xc0", b"\x91" * 200, dice.randbytes(30)])
    return dice.random() < 0.5 if kind is bool else anything(dice)


def spoil(dice: random.Random, value: Any) -> Any:
    """Put something else in one place of a message."""
    if isinstance(value, (list, tuple)) and value and dice.random() < 0.85:
        parts = list(value)
        place = dice.randrange(len(parts))
        what = dice.randrange(8)
        if what == 0:
            del parts[place]
        elif what == 1:
            parts.insert(place, anything(dice))
        elif what == 2:
            parts += [parts[place]] * dice.choice([1, 10, 50])
        else:
            parts[place] = spoil(dice, parts[place])
        return parts
    if isinstance(value, dict) and dice.random() < 0.5:
        return {**value, dice.choice([*TEXTS, *WORDS, "at", "priority", "delay_s"]): anything(dice)}
    return anything(dice)


def spoilt_bytes(dice: random.Random, frame: bytes) -> bytes:
    """Change some bytes, cut it off, or have it go on."""
    what = dice.randrange(3)
    if what == 0 or not frame:
        return frame[: dice.randrange(len(frame) + 1)]
    if what == 1:
        return frame + dice.randbytes(dice.choice([1, 8, MOST_CONTINUED]))
    changed = bytearray(frame)
    for _ in range(dice.randrange(1, 4)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def frames(dice: random.Random, *kinds: Any) -> list[bytes]:
    """Make the frames of one hostile message; most of them are messages of these kinds, and were good once."""
    what = dice.randrange(20)
    if what == 0:
        return [dice.randbytes(dice.choice([0, 1, 5, 50, 3000]))]
    if what == 1:
        return [dice.randbytes(dice.randrange(8)) for _ in range(dice.randrange(2, 6))]
    if what == 2:
        return [msgpack.packb(anything(dice))]
    good = wire.encode(well_formed(dice, dice.choice(kinds)))
    if what < 7:
        return [good]  # whatever it means
    if what < 12:
        return [spoilt_bytes(dice, good)]
    return [msgpack.packb(spoil(dice, msgpack.unpackb(good, strict_map_key=False)))]


def poses(frame: bytes) -> bool:
    """Tell whether this, by bad luck, is a good HELLO of another role than client: that may well be let in."""
    try:
        array = msgpack.unpackb(frame)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return False
    return type(array) is list and len(array) == 6 and array[0] == "HELLO" and array[2] != "client"


# --- ZMTP by hand (https://rfc.zeromq.org/spec/23/) --------------------------------------


def greeting(mechanism: bytes = b"NULL", major: int = 3, minor: int = 1) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f" + bytes([major, minor]) + mechanism.ljust(20, b"\0") + bytes(32)


def command(name: bytes, body: bytes) -> bytes:
    told = bytes([len(name)]) + name + body
    return b"\x04" + bytes([len(told)]) + told if len(told) < 256 else b"\x06" + len(told).to_bytes(8, "big") + told


def ready(socket_type: bytes) -> bytes:
    told = b"\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    return command(b"READY", told + b"\x08Identity" + bytes(4))


def zmtp(dice: random.Random, socket_type: bytes, mechanism: bytes) -> tuple[bytes, bytes]:
    """Make the bytes of one connection that goes wrong: those at once, and those once it was answered."""
    hello = greeting(mechanism)
    what = dice.randrange(14)
    if what == 0:
        return dice.randbytes(dice.choice([1, 10, 64, 1000, 30_000])), b""
    if what == 1:
        return hello[: dice.randrange(64)], b""
    if what == 2:
        return hello[: dice.randrange(64)] + dice.randbytes(100), b""
    if what == 3:
        return greeting(dice.choice([b"PLAIN", b"GSSAPI", b"NULL", b"CURVE", b"\xff" * 20]), dice.randrange(256)), b""
    if what == 4:
        return b"\x01\x00" * dice.randrange(1, 50), b""  # as version 1 of the protocol began
    if what == 5 and mechanism == b"CURVE":
        return hello + command(b"HELLO", b"\x01\0" + dice.randbytes(dice.choice([198, 198, 10, 250]))), b""
    if what == 6 and mechanism == b"CURVE":
        return hello + command(dice.choice([b"INITIATE", b"MESSAGE", b"READY"]), dice.randbytes(250)), b""
    if what == 7:
        return hello + b"\x06" + dice.choice([(1 << 64) - 1, 1 << 62, 60 << 20]).to_bytes(8, "big"), b""
    if what == 8:
        return hello + command(b"READY", dice.randbytes(dice.randrange(200))), b""
    opened = hello + ready(socket_type)
    if what == 9:  # a frame that never ends
        return opened, b"\x02" + (dice.choice([60, 63]) << 20).to_bytes(8, "big") + dice.randbytes(1000)
    if what == 10:
        return opened, bytes([dice.randrange(256)]) + dice.randbytes(dice.choice([1, 8, 9, 300]))
    if what == 11:
        name = dice.choice([b"PING", b"PONG", b"SUBSCRIBE", b"CANCEL", b"ERROR", b"READY", b"WHAT", b""])
        return opened, command(name, dice.randbytes(dice.choice([0, 1, 2, 18, 300])))
    if what == 12:  # parts without end
        return opened, b"\x01\x01x" * dice.choice([10, 1000])
    return opened, b"\x00\xff" + dice.randbytes(100)


# --- HTTP ------------------------------------------------------------------------------

ENDPOINTS = [
    *("POST /sys_cmd", "GET /jobs", "GET /jobs/J", "DELETE /jobs/J", "POST /jobs/J/retry", "GET /jobs/J/log"),
    *("GET /dead", "DELETE /dead", "POST /dead/retry", "GET /dead/J", "DELETE /dead/J", "POST /dead/J/retry"),
    *("GET /callbacks", "GET /functions", "GET /workers", "GET /runners", "POST /runners", "GET /runners/T"),
    *("DELETE /runners/T", "GET /runners/T/U", "DELETE /runners/T/U", "POST /runners/T/U/restart"),
    *("GET /runners/T/U/log", "GET /queues", "GET /queues/BAD", "PATCH /queues/BAD", "POST /queues/BAD/pause"),
    *("POST /queues/BAD/resume", "GET /timers", "POST /timers", "GET /timers/N", "DELETE /timers/N"),
    *("POST /timers/N/pause", "POST /timers/N/resume", "POST /timers/N/run", "GET /apps", "GET /apps/N"),
    *("POST /apps/N/M", "GET /healthz", "GET /readyz", "GET /", "GET /site/J", "GET /nothing"),
]
QUERIES = ["", "?", "?wait=1e309", "?wait=nan", "?wait=-1", "?limit=0", "?limit=99999999999999999999", "?state=no"]
QUERIES += ["?before=0-0", "?before=" + "9" * 400, "?a=b&a=b", "?%ff=%00", "?wait=1&wait=2", "?" + "x" * 3000]
JSONS = ["", "{", "[", "nul", "NaN", "[NaN]", '{"a":1e999}', "[" * 3000, '{"a":' * 3000, "1" * 5000, '"\\ud800"']
JSONS += ['{"cmd":"no_such","cmd":"no_such"}', '{"cmd":"no_such","data":' + "[" * 150 + "]" * 150 + "}", "[[]]", "[{}]"]
FIELDS = ["from", "to", "cmd", "data", "job_id", "queue", "priority", "delay_s", "at", "timeout_s", "retries"]
FIELDS += [
    "backoff_s",
    "result_ttl_s",
    "key",
    "key_limit",
    "notify",
    "target",
    "type",
    "name",
    "fields",
    "é",
    "x" * 300,
]
KINDS_OF_BODY = ["application/json"] * 8 + ["", "text/plain", "application/json; charset=utf-16", "multipart/form-data"]


def plain(dice: random.Random, depth: int = 0) -> Any:
    """Make any value that JSON can carry, and some that it cannot."""
    kind = dice.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [plain(dice, depth + 1) for _ in range(dice.randrange(4))]
    if kind == 7:
        return {dice.choice(FIELDS): plain(dice, depth + 1) for _ in range(dice.randrange(4))}
    return [None, True, dice.choice([*NUMBERS, 1 << 70]), dice.choice(FLOATS), dice.choice(TEXTS), -1][kind]


def body(dice: random.Random) -> bytes:
    """Make a body: JSON of a command with something wrong, or no JSON."""
    what = dice.randrange(8)
    if what == 0:
        return dice.choice(JSONS).encode()
    if what == 1:
        return dice.randbytes(dice.choice([1, 50, 5000]))
    told: Any = {"cmd": "no_such", "data": 1, "job_id": "hostile"}
    for _ in range(dice.randrange(1, 4)):
        told[dice.choice(FIELDS)] = plain(dice)
    told["cmd"] = dice.choice(["no_such", "no_such", 5, None, "", "os.system"])
    told["no_such_field"] = 1
    text = json.dumps([told] * dice.choice([1, 2, 50]) if what == 2 else told).encode()
    return spoilt_bytes(dice, text) if what == 3 else text


def path(dice: random.Random, pattern: str) -> str:
    """Put something into the places of a path."""
    parts = []
    for part in pattern.split("/"):
        if part == "BAD":  # a good name would make a queue
            part = quote(dice.choice([":", "a b", "\0", "x" * 200, "é", "%"]), safe="")
        elif part.isupper():
            part = quote(dice.choice([*TEXTS[:5], *TEXTS[6:-1], "hostile"]).encode(), safe="")
        parts.append(part)
    made = "/".join(parts)
    what = dice.randrange(12)
    if what == 0:
        return made.upper()
    if what == 1:
        return made + dice.choice(["/", "//", "/../..", "%2f", "%00", "/%2e%2e/%2e%2e/etc/passwd", ";a=b", "#x"])
    return made + (dice.choice(QUERIES) if what < 6 else "")


def request(dice: random.Random) -> bytes:
    """Make a request that is HTTP, and that asks something wrong."""
    method, _, pattern = dice.choice(ENDPOINTS).partition(" ")
    if dice.random() < 0.1:
        method = dice.choice(["PUT", "HEAD", "OPTIONS", "TRACE", "get", "X" * 50, "PATCH"])
        pattern = dice.choice(["/sys_cmd", "/jobs", "/healthz"])
    head = [f"{method} {path(dice, pattern)} HTTP/1.1", "Host: 127.0.0.1"]
    sent = body(dice) if method in ("POST", "PATCH", "PUT") else b""
    if sent:
        head += [f"Content-Type: {dice.choice(KINDS_OF_BODY)}", f"Content-Length: {len(sent)}"]
    if dice.random() < 0.2:
        extra = ["Operation: workflow", "Operation: x", "Prefer: wait=x", "Accept: text/plain", "Origin: http://evil"]
        head.append(
            dice.choice([*extra, "Host: evil", "Authorization: Bearer x", "Expect: 100-continue", "X: " + "y" * 9000])
        )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + sent


def http(dice: random.Random) -> bytes:
    """Make the bytes of one connection that are not quite HTTP."""
    good = request(dice)
    post = b"POST /sys_cmd HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    what = dice.randrange(12)
    if what == 0:
        return dice.randbytes(dice.choice([1, 10, 1000, 20_000]))
    if what == 1:
        return good[: dice.randrange(len(good))]
    if what == 2:
        return spoilt_bytes(dice, good)
    if what == 3:  # two lengths, or a length and chunks: what follows could be taken for a request of somebody else
        lengths = dice.choice(
            [b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 5\r\nTransfer-Encoding: chunked"]
        )
        return post + lengths + b"\r\n\r\n0\r\n\r\n" + good
    if what == 4:
        chunk = dice.choice(
            [b"zz\r\n", b"-1\r\n", b"f" * 20 + b"\r\n", b"5\r\nab", b"1;" + b"x" * 5000 + b"\r\na", b"\r\n"]
        )
        return post + b"Transfer-Encoding: chunked\r\n\r\n" + chunk
    if what == 5:
        coding = dice.choice(
            [b"gzip", b"chunked, chunked", b"identity, chunked", b"chunked\x0b", b" chunked", b"x" * 100]
        )
        return post + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n"
    if what == 6:
        length = dice.choice([b"-1", b"+5", b"0x5", b"5 5", b"9" * 30, b"", b"1e3", "٥".encode(), b"5,6"])
        return post + b"Content-Length: " + length + b"\r\n\r\n{}"
    if what == 7:
        return b"GET /jobs HTTP/1.1\r\n" + b"X-A: b\r\n" * dice.choice([10, 1000, 12_000]) + b"\r\n"
    if what == 8:
        return b"GET /" + b"a" * dice.choice([5000, 70_000]) + b" HTTP/1.1\r\n\r\n"
    if what == 9:
        return dice.choice(
            [b"GET /jobs\r\n\r\n", b"GET  /jobs HTTP/1.1\r\n\r\n", b"GET /jobs HTTP/9.9\r\n\r\n", b"GET\r\n\r\n"]
        )
    if what == 10:
        return (
            b"GET /jobs HTTP/1.1\r\nHost: a\r\n"
            + dice.choice([b" folded: x", b": x", b"a b: c", b"a\0b: c", b"\n\n"])
            + b"\r\n\r\n"
        )
    return post + b"Content-Length: 100000\r\n\r\n" + b"{"
