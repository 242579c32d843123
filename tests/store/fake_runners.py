"""`runner.lua` in Python, operation by operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from store.fake_graph import Moves
from store.space import raw

from exesys.runner import Name, RunnerState, misread
from exesys.store.redis import RUNNER_FIELDS
from exesys.turn import Assign, Enlist, Halt, Loglines, Noted, Revive, RunnerDone, RunnerOp

EARLY, STOPPED = "a stop was loaded before it ran", "a stop was loaded before it ran again"
Verdict = tuple[str, bool]  # and whether the record is told
FINAL = (b"stopped", b"failed")


class Lives(Moves):
    """What a turn asks of the runners."""

    def _live(self, ops: Iterable[RunnerOp]) -> list[RunnerDone]:
        return [self._done(op) for op in ops]

    def _done(self, op: RunnerOp) -> RunnerDone:
        verdict, told = self._operate(op)
        record = self.db.values.get(self.keys("runner", str(op.name)), {}) if told else {}
        fields = {field.encode(): value for field, value in record.items()}
        return RunnerDone("spoilt", {}) if fields and misread(fields) else RunnerDone(verdict, fields)

    def _operate(self, op: RunnerOp) -> Verdict:
        match op:
            case Enlist():
                return self._list(op)
            case Assign():
                return self._assign(op)
            case Noted():
                return self._note_life(op)
            case Halt(name, loaded):
                if not name.uuid:
                    self.db.delete(self.keys("run", *name))
                    return "noted", False
                if loaded and not self._loaded(name):
                    return "unloaded", False
                verdict = self._halt(name)
                run = self.keys("run", *name)
                if loaded and verdict in ("none", "ended") and run not in self.db.ttl_s:
                    self.db.expire(run, int(self.limits.result_ttl_s))
                return verdict, False
            case Revive(name):
                return self._revive(name)
            case Loglines():
                return self._log(op), False

    # --- the record and its stop key ----------------------------------------

    def _of(self, name: Name, *fields: str) -> list[bytes | None]:
        record = self.keys("runner", str(name))
        return [self.db.hget(record, field) for field in fields]

    def _write(self, name: Name, **fields: Any) -> None:
        self.db.hset(self.keys("runner", str(name)), **fields)

    def _loaded(self, name: Name) -> bool:
        return bool(self.db.values.get(self.keys("run", *name)) == b"0")

    def _set_run(self, name: Name, value: bytes, ttl_s: int | None = None) -> None:
        run = self.keys("run", *name)
        self.db.delete(run)
        self.db.values[run] = value
        if ttl_s is not None:
            self.db.expire(run, ttl_s)

    def _conclude(self, name: Name, state: str) -> None:
        limits, text = self.limits, str(name)
        ttl_s = int(limits.error_ttl_s if state == RunnerState.failed else limits.result_ttl_s)
        self._write(name, ended=self.now_ms, session="")
        self.db.srem(self.keys("runners"), text)
        self.db.zadd(self.keys("ended"), text, self.now_ms)
        self.db.expire(self.keys("runner", text), ttl_s)
        self.db.expire(self.keys("runner_log", text), ttl_s)
        self._set_run(name, b"0", ttl_s)

    def _stop_waiting(self, name: Name, epoch: bytes | None) -> str:
        self._write(name, state="stopped", how=EARLY if epoch == b"0" else STOPPED)
        self._conclude(name, "stopped")
        return "stopped"

    def _room(self, name: Name) -> bool:
        listed: set[str] = self.db.values.get(self.keys("runners"), set())
        return str(name) in listed or len(listed) < self.limits.runners

    # --- the operations -------------------------------------------------------

    def _list(self, op: Enlist) -> Verdict:
        name, target, data, digest, grace_s, job = op
        [known] = self._of(name, "sum")
        if known is not None:
            return ("same" if known == digest else "conflict"), True
        if self._loaded(name):
            return "stopped", False
        if not self._room(name):
            return "full", False
        self._write(name, sum=digest, born=self.now_ms, state="starting", epoch=0)
        self._write(name, target=target, data=data, size=len(data), grace_s=grace_s, job=job)
        self.db.sadd(self.keys("runners"), str(name))
        self._set_run(name, b"1")
        return "new", True

    def _assign(self, op: Assign) -> Verdict:
        name, epoch, session, host = op
        state, now_epoch, now_session = self._of(name, "state", "epoch", "session")
        if state is None or state in FINAL:
            return "gone", False
        given = (now_epoch, now_session) == (raw(epoch), raw(session))
        if not given and int(now_epoch or 0) >= epoch:
            return "stale", True
        if self._loaded(name):
            if not given:
                return self._stop_waiting(name, now_epoch), False
            self._write(name, state="stopping")
            return "stopping", False
        if not given:
            self._write(name, state="starting", epoch=epoch, session=session, host=host)
            self.db.hdel(self.keys("runner", str(name)), "began")
        if self.keys("run", *name) not in self.db.values:
            self._set_run(name, b"1")
        return "launched", True

    def _note_life(self, op: Noted) -> Verdict:
        name, epoch, final, fields = op
        state, now_epoch = self._of(name, "state", "epoch")
        if state is None or state in FINAL:
            return "ended", False
        if now_epoch != raw(epoch):
            return "stale", True
        late = fields.get("state") == RunnerState.running and state != b"starting"
        self._write(name, **_without_state(fields) if late else fields)
        if final:
            self._conclude(name, str(fields.get("state", state.decode())))
        return "noted", False

    def _halt(self, name: Name) -> str:
        state, session, epoch = self._of(name, "state", "session", "epoch")
        if state is None:
            return "none"
        if state in FINAL:
            return "ended"
        self._set_run(name, b"0")
        if session:
            self._write(name, state="stopping")
            return "stopping"
        return self._stop_waiting(name, epoch)

    def _revive(self, name: Name) -> Verdict:
        [state] = self._of(name, "state")
        if state is None:
            return "none", False
        if state not in FINAL:
            return "active", True
        if not self._room(name):
            return "full", False
        text = str(name)
        record, log = self.keys("runner", text), self.keys("runner_log", text)
        self._write(name, state="starting", failures=0, losses=0)
        self.db.hdel(record, "ended", "how", "error", "began")
        self.db.persist(record)
        self.db.persist(log)
        self.db.zrem(self.keys("ended"), text)
        self.db.sadd(self.keys("runners"), text)
        self._set_run(name, b"1")
        return "started", True

    def _log(self, op: Loglines) -> str:
        name, epoch, chunk, text = op
        state, last, number = self._of(name, "state", "log_epoch", "log_chunk")
        if state is None:
            return "gone"
        if (int(last or 0), int(number or 0)) >= (epoch, chunk):
            return "stale"
        packed, log = text.encode(), self.keys("runner_log", str(name))
        self._write(name, log_epoch=epoch, log_chunk=chunk)
        self.db.hincrby(self.keys("runner", str(name)), "log_total", len(packed))
        kept = self.db.values.get(log, b"") + packed
        self.db.values[log] = kept[-self.limits.log_bytes :] if len(kept) > 2 * self.limits.log_bytes else kept
        if len(kept) > 2 * self.limits.log_bytes:
            self.db.persist(log)
        if state in FINAL:
            self.db.expire(log, self.db.ttl_s[self.keys("runner", str(name))])
        return "noted"

    # --- boot -------------------------------------------------------------------

    def runners(self) -> dict[Name, dict[bytes, bytes]]:
        """Return the records of all runners that have not ended, without their data."""
        found = {}
        for text in self.db.values.get(self.keys("runners"), ()):
            name = Name(*text.split(":"))
            values = dict(zip(RUNNER_FIELDS, self._of(name, *RUNNER_FIELDS), strict=True))
            fields = {field.encode(): value for field, value in values.items() if value}
            if fields and not misread(fields):
                found[name] = fields
        return found


def _without_state(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in fields.items() if field != "state"}
