"""Sending workflows to a system, and looking at what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import Answer, System, until

WORKFLOW = {"Operation": "workflow"}
Job = dict[str, Any]


def step(from_: str, to: str | list[str] = "end_job", cmd: str = "fed", **more: Any) -> dict[str, Any]:
    """Write a step as it is sent."""
    return {"from": from_, "to": to, "cmd": cmd, **more}


def send(system: System, job_id: str, *steps: Mapping[str, Any], wait: float | None = 20) -> Answer:
    """Send a workflow as one array."""
    return system.post([{**each, "job_id": job_id} for each in steps], wait=wait, headers=WORKFLOW)


def send_one(system: System, job_id: str, command: Mapping[str, Any], waits: bool) -> Answer:
    """Send one step, with the header if it `waits`."""
    return system.post({**command, "job_id": job_id}, headers=WORKFLOW if waits else {})


def retry(system: System, job_id: str) -> Answer:
    return system.request("POST", f"/jobs/{job_id}/retry")


def cancel(system: System, job_id: str) -> Answer:
    return system.request("DELETE", f"/jobs/{job_id}")


def job_of(system: System, job_id: str) -> Job:
    """Return the job; there is only an error in it while it is not there."""
    job: Job = system.get(f"/jobs/{job_id}").body
    return job


def ended(system: System, job_id: str) -> Job:
    """Wait for the end of a job, and return it."""
    return until(
        lambda: ((job := job_of(system, job_id)).get("state") in ("data_available", "error") and job) or {},
        f"{job_id} ended",
    )


def idle(system: System, job_id: str) -> None:
    """Wait until nothing of the job goes on by itself."""
    until(
        lambda: not {"start", "processing"} & {each["state"] for each in job_of(system, job_id)["steps"]},
        "what can run has run",
        every_s=0.002,
    )


def called(each: Mapping[str, Any]) -> str:
    """Name a step, sent or shown, by its edge."""
    to = each["to"] if isinstance(each["to"], str) else ",".join(each["to"])
    return f"{each['from']}>{to}"


def states(job: Job) -> dict[str, str]:
    """The state of each step of a job, by its edge."""
    return {called(each): each["state"] for each in job["steps"]}


def one(job: Job, name: str) -> dict[str, Any]:
    """The only step of a job that comes from that name."""
    [found] = [each for each in job["steps"] if each["from"] == name]
    return dict(found)


def failed(job: Job) -> dict[str, str]:
    """What each step that failed says, by its `from`."""
    return {each["from"]: each["error"]["message"] for each in job["steps"] if each["state"] == "error"}


def steady(system: System) -> dict[tuple[int, str], bytes]:
    """Return all that Redis holds, once nothing moves of itself."""
    last = [system.everything()]

    def at_rest() -> bool:
        before, last[0] = last[0], system.everything()
        return before == last[0]

    until(at_rest, "Redis is at rest", every_s=0.1)
    return last[0]
