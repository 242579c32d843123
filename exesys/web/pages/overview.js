// What goes on now: rates and latencies of the last minutes, queues, and what runs.

import { h, say } from "../dom.js";
import { count, millis, rate, seconds } from "../format.js";
import * as live from "../live.js";
import { Plot } from "../plot.js";
import { Table } from "../table.js";
import { progressOf, running } from "../jobrows.js";

const RUNNING_MS = 2000;
const MOST_RUNNING = 100;

const TILES = [
  ["Done / s", (f) => rate(f.rate?.done), "#/jobs"],
  ["Waiting", (f) => count((f.queues ?? []).reduce((sum, each) => sum + each.waiting, 0)), "#/queues"],
  ["Slots busy", (f) => `${count(f.slots?.busy)} / ${count(f.slots?.all)}`, "#/workers"],
  ["Workers", (f) => count(f.workers), "#/workers"],
  ["Done", (f) => count(f.done), "#/jobs?state=data_available"],
  ["Failed", (f) => count(f.failed), "#/dead"],
  ["Wait, p95", (f) => millis(f.wait_ms?.p95), null],
  ["Run, p95", (f) => millis(f.run_ms?.p95), null],
];

export default function overview(page) {
  page.head("Overview");
  const tiles = TILES.map(([name, of, href]) => {
    const value = h("b", {}, "–");
    const tile = h(href ? "a" : "div", { className: "tile", href }, value, h("span", {}, name));
    return { tile, show: (figures) => say(value, of(figures)) };
  });
  const through = new Plot("Jobs per second", [
    { name: "accepted", ink: "--processing", dash: true, of: (f) => f.rate?.accepted },
    { name: "done", ink: "--done", of: (f) => f.rate?.done },
    { name: "failed", ink: "--error", of: (f) => f.rate?.failed },
  ], rate);
  const slow = new Plot("Latency", [
    { name: "wait p50", ink: "--processing", of: (f) => f.wait_ms?.p50 },
    { name: "p95", ink: "--processing", dash: true, of: (f) => f.wait_ms?.p95 },
    { name: "run p50", ink: "--standby", of: (f) => f.run_ms?.p50 },
    { name: "p95", ink: "--standby", dash: true, of: (f) => f.run_ms?.p95 },
  ], millis);
  const queues = new Table("Queues", [
    { title: "Queue", value: (row) => row.name },
    { title: "Waiting", num: true, width: "90px", value: (row) => count(row.waiting) },
    { title: "Oldest", num: true, width: "80px", value: (row) => (row.oldest_s ? seconds(row.oldest_s) : "") },
    { title: "", width: "80px", value: (row) => (row.paused ? "paused" : "") },
  ], { key: (row) => row.name, empty: "Nothing waits." });
  const now = new Table("What runs now", [
    { title: "Job", value: (row) => row.job_id, render: (row) => h("a", { href: `#/job/${encodeURIComponent(row.job_id)}`, className: "mono" }, row.job_id) },
    { title: "Function", value: (row) => row.cmd },
    { title: "For", num: true, width: "76px", value: (row) => row.since },
    { title: "Progress", width: "112px", wide: true, value: (row) => progressOf(row).value, render: (row) => progressOf(row).element },
  ], { key: (row) => `${row.job_id}:${row.from}>${row.to}`, open: (row) => { location.hash = `#/job/${row.job_id}`; }, empty: "Nothing runs at the moment." });
  const part = (title, table, href, word) => h("section", { className: "stack" },
    h("div", { className: "head" }, h("h2", {}, title), h("a", { className: "end", href }, word)), table.element);
  page.root.append(
    h("div", { className: "tiles" }, tiles.map(({ tile }) => tile)),
    h("div", { className: "pair" }, through.element, slow.element),
    h("div", { className: "pair" }, part("Runs now", now, "#/workers", "Workers"), part("Queues", queues, "#/queues", "All queues")));

  const show = (figures) => {
    tiles.forEach((tile) => tile.show(figures));
    through.show(live.figures());
    slow.show(live.figures());
    queues.show([...(figures.queues ?? [])].sort((one, other) => other.waiting - one.waiting));
  };
  show(live.figures().at(-1) ?? {});
  page.on("stats", show);
  page.again(async (signal) => now.show(await running(MOST_RUNNING, signal)), RUNNING_MS);
  page.until(() => [through, slow, queues, now].forEach((each) => each.close()));
}
