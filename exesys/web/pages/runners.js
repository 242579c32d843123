// Runners: what goes on until it is stopped.

import { get, remove, text } from "../api.js";
import { h, put, say, stateOf } from "../dom.js";
import { bytes, count, seconds } from "../format.js";
import { allowed } from "../role.js";
import { Table } from "../table.js";
import { busy, toast } from "../toast.js";

const AGAIN_MS = 1500;
const ENDED = ["stopped", "failed"];

export default function runners(page) {
  page.head("Runners");
  let chosen = null;
  const pathOf = (row) => `/runners/${encodeURIComponent(row.type)}/${encodeURIComponent(row.uuid)}`;
  const stop = (row) => h("button", { type: "button", className: "risk", disabled: row.state === "stopping", onclick: busy(async () => {
    await remove(pathOf(row));
    toast(`${row.name} is told to stop.`);
    await again();
  }) }, "Stop");
  const table = new Table("Runners", [
    { title: "Runner", value: (row) => row.name, render: (row) => h("button", { type: "button", className: "plain", onclick: () => choose(row) }, row.name) },
    { title: "Function", wide: true, value: (row) => row.target },
    { title: "State", width: "108px", value: (row) => row.state, alike: true, render: (row) => stateOf(row.state) },
    { title: "Life", width: "60px", wide: true, num: true, value: (row) => count(row.epoch) },
    { title: "Up", width: "80px", wide: true, num: true, value: (row) => (row.uptime_s === undefined ? "" : seconds(row.uptime_s)) },
    { title: "CPU", width: "76px", wide: true, num: true, value: (row) => (row.cpu_percent === undefined ? "" : `${row.cpu_percent} %`) },
    { title: "Memory", width: "80px", wide: true, num: true, value: (row) => (row.memory_bytes === undefined ? "" : bytes(row.memory_bytes)) },
    { title: "Tells", wide: true, value: (row) => row.error?.message ?? row.waits ?? row.progress?.text ?? "" },
    { title: "", width: "70px", value: (row) => row.state, render: (row) => (ENDED.includes(row.state) ? "" : allowed("submit", () => h("span", { className: "acts" }, stop(row))) ?? "") },
  ], { key: (row) => row.name, open: choose, empty: "No runner is there. `bin/exesys runner start` starts one." });
  const log = h("pre", { className: "value log", tabindex: 0, "aria-label": "Log" });
  const title = h("h2");
  const below = h("section", { className: "card", hidden: true }, h("header", {}, title), log);
  page.root.append(table.element, below);

  function choose(row) {
    chosen = row;
    put(title, `Log of ${row.name}`);
    say(log, "");
    below.hidden = false;
    again();
  }

  const again = page.again(async (signal) => {
    table.show((await get("/runners", signal)).runners);
    if (!chosen) return;
    const following = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
    say(log, (await text(`${pathOf(chosen)}/log`, signal)) || "Nothing was printed or logged.");
    if (following) log.scrollTop = log.scrollHeight;
  }, AGAIN_MS);
  page.until(() => table.close());
}
