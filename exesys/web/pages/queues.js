// Queues: what waits, since when, who serves them; paused and resumed.

import { get, post } from "../api.js";
import { h, stateOf } from "../dom.js";
import { count, seconds } from "../format.js";
import { allowed } from "../role.js";
import { Table } from "../table.js";
import { busy, toast } from "../toast.js";

const AGAIN_MS = 2000;

export default function queues(page) {
  page.head("Queues");
  const change = (row, word, done) => h("button", { type: "button", onclick: busy(async () => {
    await post(`/queues/${encodeURIComponent(row.name)}/${word.toLowerCase()}`);
    toast(`The queue ${row.name} ${done}.`);
    await again();
  }) }, word);
  const table = new Table("Queues", [
    { title: "Queue", value: (row) => row.name },
    { title: "State", width: "100px", wide: true, value: (row) => stateOfQueue(row), render: (row) => stateOf(stateOfQueue(row), wordOf(row)) },
    { title: "Waiting", width: "90px", num: true, value: (row) => count(row.waiting) },
    { title: "Oldest", width: "80px", wide: true, num: true, value: (row) => (row.oldest_s === null ? "" : seconds(row.oldest_s)) },
    { title: "Running", width: "80px", wide: true, num: true, value: (row) => (row.running === null ? "" : count(row.running)) },
    { title: "Workers", width: "80px", wide: true, num: true, value: (row) => count(row.workers) },
    { title: "Limits", wide: true, value: (row) => limits(row) },
    { title: "", width: "90px", value: (row) => String(row.paused), render: (row) => allowed("admin", () => h("span", { className: "acts" },
      row.paused ? change(row, "Resume", "goes on") : change(row, "Pause", "is paused"))) ?? "" },
  ], { key: (row) => row.name, tall: true });
  page.root.append(table.element);
  let shown = [];
  const again = page.again(async (signal) => {
    shown = (await get("/queues", signal)).queues;
    table.show(shown);
  }, AGAIN_MS);
  page.on("stats", ({ queues: told = [] }) => {
    const now = new Map(told.map((each) => [each.name, each]));
    shown = shown.map((row) => (now.has(row.name) ? { ...row, waiting: now.get(row.name).waiting } : row));
    table.show(shown);
  });
  page.until(() => table.close());
}

const stateOfQueue = (row) => (row.paused ? "paused" : row.workers ? "running" : "start");
const wordOf = (row) => (row.paused ? "paused" : row.workers ? "served" : "not served");

function limits(row) {
  return ["depth", "rate", "concurrency", "key_limit"].filter((name) => row[name]).map((name) => `${name} ${row[name]}`).join(", ");
}
