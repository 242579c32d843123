// Workers, and what their slots run.

import { get } from "../api.js";
import { h } from "../dom.js";
import { count, seconds } from "../format.js";
import { progressOf, running } from "../jobrows.js";
import { Table } from "../table.js";

const AGAIN_MS = 1500;
const MOST_RUNNING = 1000;

export default function workers(page) {
  page.head("Workers");
  const there = new Table("Workers", [
    { title: "Worker", value: (row) => row.name ?? row.session, render: (row) => h("code", {}, row.session) },
    { title: "Host", wide: true, value: (row) => row.host ?? "" },
    { title: "PID", width: "80px", wide: true, num: true, value: (row) => row.pid ?? "" },
    { title: "Queues", value: (row) => row.queues.join(", ") },
    { title: "Slots", width: "76px", num: true, value: (row) => `${count(Math.min(row.held, row.slots))} / ${count(row.slots)}` },
    { title: "Holds", width: "70px", num: true, value: (row) => count(row.held) },
    { title: "Heard", width: "110px", wide: true, num: true, value: (row) => `${seconds(row.silent_s)} ago` },
    { title: "", width: "80px", wide: true, value: (row) => (row.draining ? "draining" : "") },
  ], { key: (row) => row.session, empty: "No worker is there. `bin/exesys status` says why." });
  const slots = new Table("Slots", [
    { title: "Slot", width: "150px", wide: true, value: (row) => row.slot },
    { title: "Job", value: (row) => row.job_id ?? "", render: (row) => (row.job_id ? h("a", { href: `#/job/${encodeURIComponent(row.job_id)}`, className: "mono" }, row.job_id) : h("span", { className: "soft" }, "idle")) },
    { title: "Function", value: (row) => row.cmd ?? "" },
    { title: "For", width: "76px", num: true, value: (row) => row.since ?? "" },
    { title: "Progress", width: "112px", wide: true, value: (row) => progressOf(row).value, render: (row) => progressOf(row).element },
  ], { key: (row) => row.slot, open: (row) => { if (row.job_id) location.hash = `#/job/${row.job_id}`; }, empty: "No slot is there." });
  page.root.append(there.element, h("h2", {}, "Slots"), slots.element);
  page.again(async (signal) => {
    const [{ workers: found }, jobs] = await Promise.all([get("/workers", signal), running(MOST_RUNNING, signal)]);
    there.show(found);
    slots.show(found.flatMap((worker) => slotsOf(worker, jobs)));
  }, AGAIN_MS);
  page.until(() => { there.close(); slots.close(); });
}

/** A line for each slot. A worker's jobs are begun in the order they were sent; those behind its slots are fetched ahead. */
function slotsOf(worker, jobs) {
  const held = jobs.filter((step) => step.worker === worker.session);
  const name = worker.session.slice(0, 8);
  const lines = Array.from({ length: worker.slots }, (_, number) => ({ ...held[number], slot: `${name} · ${number + 1}` }));
  return [...lines, ...held.slice(worker.slots).map((step, number) => ({ ...step, slot: `${name} · next ${number + 1}` }))];
}
