"""Who is let in by CURVE: answers to the questions libzmq asks about each new connection. Pure.

The protocol is ZAP (https://rfc.zeromq.org/spec/27/): one question for each
handshake, with the client's public key; the answer lets it in, and the user
id in it stands beside every message of that connection. A question that makes
no sense is answered with a refusal, and nothing is raised: without an answer
CURVE would let in nobody any more, and without a handler it lets in everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from exesys.bus.roles import role_of

ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"
# Domains: which socket is connected to.
FRONT, RESULTS, EVENTS, APP, JOBS = "front", "results", "events", "app", "jobs."
_RESULTS_FROM = ("worker", "admin")


def answer(
    question: Sequence[bytes],
    known: Mapping[bytes, str] | None,
    encode: Callable[[bytes], bytes],
    jobs_of: Callable[[str], str] = lambda session: "",
) -> tuple[list[bytes], str]:
    """Answer a question that a ROUTER received.

    `known` has the keys that are let in, in Z85, and what `roles.named` calls
    each; without keys it is None, and whoever speaks ZMTP 3 is let in. `encode`
    spells a raw key in Z85; `jobs_of` tells whose key the jobs of a session are
    for. Returns the frames of the answer, and why it is no, "" if it is yes.
    """
    address, sequence, key, why = question[0], b"", "", "a question that is none"
    if len(question) >= 8 and question[2] == VERSION:
        sequence, domain, mechanism = question[3], question[4].decode("latin-1"), question[7]
        where = question[5].decode("latin-1")
        raw = question[8] if mechanism == b"CURVE" and len(question) == 9 else b""
        if known is None:
            why = "" if mechanism == b"NULL" else f"{where} came with a key, and none is needed"
        elif len(raw) != 32:
            why = f"{where} came without a key"
        else:
            key = known.get(encode(raw), "")
            why = f"{where} came with a key that is not known" if not key else _not_there(key, domain, where, jobs_of)
    if why:
        return [address, b"", VERSION, sequence, b"400", b"not let in", b"", b""], why
    return [address, b"", VERSION, sequence, b"200", b"OK", key.encode(), b""], ""


def _not_there(key: str, domain: str, where: str, jobs_of: Callable[[str], str]) -> str:
    """Say why a known key is not let in at a socket; "" when it is."""
    if domain == RESULTS and role_of(key) not in _RESULTS_FROM:
        return f"{where} came with the key {key}, which sends no results"
    if domain.startswith(JOBS) and jobs_of(domain.removeprefix(JOBS)) != key:
        return f"{where} came with the key {key} for the jobs of another"
    return ""
