// Jobs as rows: what GET /jobs tells, kept up by what the events tell.

import { get, query } from "./api.js";
import { bar } from "./dom.js";
import { seconds } from "./format.js";
import { nameOf } from "./layout.js";

const UNFINISHED = ["processing", "start", "standby"];

/** The state of a job: that of its least finished step, and error when one failed. */
export function stateOfJob(steps) {
  const states = new Set(steps.map((step) => step.state));
  return UNFINISHED.find((state) => states.has(state)) ?? (states.has("error") ? "error" : "data_available");
}

/** Make a row of a job as REST tells it. */
export function rowOf(job) {
  const steps = new Map(job.steps.map((step) => [nameOf(step), step]));
  const moments = job.steps.map((step) => step.accepted_ms).filter(Number.isFinite);
  return grade({ job_id: job.job_id, steps, accepted_ms: moments.length ? Math.min(...moments) : NaN });
}

/** Take an event into a row; `undefined` makes a new one. Returns the row, another object when it has changed. */
export function take(row, event) {
  const name = nameOf(event);
  const steps = row?.steps ?? new Map();
  const before = steps.get(name);
  if (before && before.attempt > event.attempt) return row;
  const ended = event.state === "data_available" || event.state === "error";
  steps.set(name, { ...before, from: event.from, to: event.to, cmd: event.cmd ?? before?.cmd, state: event.state, attempt: event.attempt,
    ...(ended ? { ended_ms: event.at_ms } : {}) });
  return grade({ job_id: event.job_id, steps, accepted_ms: row?.accepted_ms ?? event.at_ms });
}

function grade(row) {
  const steps = [...row.steps.values()];
  const ended = steps.map((step) => step.ended_ms ?? NaN);
  row.state = stateOfJob(steps);
  row.cmd = steps[0]?.cmd ?? "";
  row.more = steps.length - 1;
  row.done = steps.filter((step) => step.state === "data_available").length;
  row.ended_ms = UNFINISHED.includes(row.state) ? NaN : Math.max(...ended);
  row.error = steps.find((step) => step.error)?.error;
  return row;
}

/** What runs: the steps that workers hold, each with its worker; those longest there first. */
export async function running(most, signal) {
  const { jobs } = await get(`/jobs${query({ state: "processing", limit: most })}`, signal);
  const now_ms = Date.now();
  const found = jobs.flatMap((job) => job.steps.filter((step) => step.state === "processing").map((step) => ({ ...step, job_id: job.job_id })));
  found.sort((one, other) => (one.sent_ms ?? 0) - (other.sent_ms ?? 0));
  return found.map((step) => ({ ...step, since: seconds(Math.max(0, now_ms - step.sent_ms) / 1000) }));
}

/** The cell of a step's progress. */
export function progressOf(step) {
  const fraction = step.progress?.fraction;
  return {
    value: fraction === undefined ? "" : `${fraction}`,
    get element() {
      return fraction === undefined ? "" : bar(fraction, step.progress.text || "progress");
    },
  };
}
