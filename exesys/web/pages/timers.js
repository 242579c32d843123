// Timers: what they send, when next, and how the last ticks went.

import { get, post } from "../api.js";
import { h, stateOf } from "../dom.js";
import { count, millis, moment, seconds, until } from "../format.js";
import { allowed } from "../role.js";
import { Table } from "../table.js";
import { busy, toast } from "../toast.js";

const AGAIN_MS = 5000;

export default function timers(page) {
  page.head("Timers");
  const path = (row, word) => `/timers/${encodeURIComponent(row.name)}/${word}`;
  const run = (row) => h("button", { type: "button", onclick: busy(async () => {
    const { job_id } = await post(path(row, "run"));
    toast(`${row.name} was run: job ${job_id}.`);
    await again();
  }) }, "Run now");
  const change = (row, word, done) => h("button", { type: "button", onclick: busy(async () => {
    await post(path(row, word.toLowerCase()));
    toast(`The timer ${row.name} ${done}.`);
    await again();
  }) }, word);
  const buttons = (row) => (row.state === "spoilt" ? "" : h("span", { className: "acts" },
    allowed("submit", () => run(row)),
    row.state === "ended" ? null : allowed("admin", () => (row.state === "paused" ? change(row, "Resume", "ticks again") : change(row, "Pause", "is paused")))));
  const table = new Table("Timers", [
    { title: "Timer", value: (row) => row.name },
    { title: "Sends", wide: true, value: (row) => row.cmd ?? "" },
    { title: "When", width: "17%", wide: true, value: (row) => when(row) },
    { title: "State", width: "94px", wide: true, value: (row) => row.state, alike: true, render: (row) => stateOf(row.state) },
    { title: "Next ticks", width: "26%", value: (row) => next(row) },
    { title: "Ran", width: "56px", wide: true, num: true, value: (row) => (row.ran === undefined ? "" : count(row.ran)) },
    { title: "Late", width: "66px", wide: true, num: true, value: (row) => (row.late_ms === null || row.late_ms === undefined ? "" : millis(row.late_ms)) },
    { title: "", width: "148px", value: (row) => row.state, render: buttons },
  ], { key: (row) => row.name, tall: true, empty: "No timer is there. `bin/exesys timer add` adds one." });
  page.root.append(table.element);
  const again = page.again(async (signal) => table.show((await get("/timers", signal)).timers), AGAIN_MS);
  const tick = setInterval(() => table.refresh(), 1000);
  page.until(() => { clearInterval(tick); table.close(); });
}

function when(row) {
  if (row.cron) return `${row.cron}${row.zone ? ` (${row.zone})` : ""}`;
  return row.every_s ? `every ${seconds(row.every_s)}` : row.reason ?? "";
}

function next(row) {
  const [first, ...later] = row.next ?? [];
  if (!first) return row.reason ?? "";
  return `${until(first.due_ms)} · ${[first, ...later].slice(0, 2).map((tick) => moment(tick.tick_ms)).join(", ")}`;
}
