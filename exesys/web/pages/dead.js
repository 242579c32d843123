// Jobs that failed by themselves: seen, run again, removed.

import { get, post, query, remove } from "../api.js";
import { sure } from "../dialog.js";
import { h, say } from "../dom.js";
import { ago, count, moment } from "../format.js";
import { allowed } from "../role.js";
import { Table } from "../table.js";
import { busy, fail, toast } from "../toast.js";

const PAGE_ROWS = 200;
const AGAIN_MS = 4000;

export default function dead(page, { query: asked }) {
  page.root.className = "fixed";
  const cmd = h("input", { placeholder: "all functions", "aria-label": "Function", size: 16, value: asked.get("cmd") ?? "" });
  const told = h("span", { className: "soft", role: "status" });
  const wanted = () => cmd.value.trim();
  const which = () => (wanted() ? `of ${wanted()}` : "of all functions");
  const all = (word, work) => h("button", { type: "button", className: word === "Purge all" ? "risk" : "", onclick: busy(work) }, word);
  const retryAll = allowed("admin", () => all("Retry all", async () => {
    if (!(await sure("Run again all that failed?", `That is the failed jobs ${which()}.`, "Run again"))) return;
    await swept(() => post(`/dead/retry${query({ cmd: wanted() })}`), "retried", "run again");
  }));
  const purgeAll = allowed("admin", () => all("Purge all", async () => {
    if (!(await sure("Remove all that failed?", `The failed jobs ${which()}, with their data, results and logs. That cannot be undone.`, "Remove"))) return;
    await swept(() => remove(`/dead${query({ cmd: wanted() })}`), "purged", "removed");
  }));
  page.head("Failed jobs", told, h("label", { className: "field" }, "", cmd), retryAll, purgeAll);

  const path = (row) => encodeURIComponent(row.job_id);
  const retry = (row) => h("button", { type: "button", onclick: busy(async () => {
    await post(`/jobs/${path(row)}/retry`);
    toast(`${row.job_id} runs again.`);
    await again();
  }) }, "Retry");
  const purge = (row) => h("button", { type: "button", className: "risk", onclick: busy(async () => {
    await remove(`/dead/${path(row)}`);
    toast(`${row.job_id} is removed.`);
    await again();
  }) }, "Purge");
  const table = new Table("Failed jobs", [
    { title: "Job", value: (row) => row.job_id, render: (row) => h("a", { href: `#/job/${path(row)}`, className: "mono" }, row.job_id) },
    { title: "Function", width: "16%", wide: true, value: (row) => row.cmd },
    { title: "Error", value: (row) => `${row.error.type}: ${row.error.message}` },
    { title: "Attempts", width: "76px", wide: true, num: true, value: (row) => count(row.attempts) },
    { title: "Failed", width: "150px", wide: true, value: (row) => moment(row.failed_ms) },
    { title: "", width: "84px", wide: true, num: true, value: (row) => ago(row.failed_ms) },
    { title: "", width: "130px", value: (row) => row.job_id, render: (row) => h("span", { className: "acts" },
      allowed("submit", () => retry(row)), allowed("admin", () => purge(row))) },
  ], { key: (row) => `${row.job_id}:${row.from}>${row.to}`, open: (row) => { location.hash = `#/job/${path(row)}`; }, end: () => more(), tall: true, empty: "Nothing has failed." });
  page.root.append(table.element);

  let rows = [];
  let following = null;
  let loading = false;

  const draw = () => {
    table.show(rows);
    say(told, `${count(rows.length)}${following ? " so far" : ""}`);
  };

  async function swept(work, done, word) {
    const answer = await work();
    toast(`${count(answer[done])} ${answer[done] === 1 ? "job" : "jobs"} ${word}${answer.next ? "; there are more" : ""}.`);
    await again();
  }

  async function more() {
    if (!following || loading) return;
    loading = true;
    try {
      const { dead: found, next } = await get(`/dead${query({ limit: PAGE_ROWS, before: following, cmd: wanted() })}`, page.signal);
      rows = [...rows, ...found];
      following = next;
      draw();
    } catch (error) {
      if (!page.signal.aborted) fail(error);
    } finally {
      loading = false;
    }
  }

  const again = page.again(async (signal) => {
    if (!table.atTop && rows.length) return; // somebody reads further below
    const { dead: found, next } = await get(`/dead${query({ limit: PAGE_ROWS, cmd: wanted() })}`, signal);
    rows = found;
    following = next;
    draw();
  }, AGAIN_MS);
  cmd.addEventListener("change", () => { table.element.scrollTop = 0; again(); });
  const tick = setInterval(() => table.refresh(), 1000);
  page.until(() => { clearInterval(tick); table.close(); });
}
