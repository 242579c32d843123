// Jobs, the newest first: searched, filtered, and kept up as they go on.

import { get, query } from "../api.js";
import { h, say, stateOf } from "../dom.js";
import { ago, count, millis, moment } from "../format.js";
import { rowOf, take } from "../jobrows.js";
import { Table } from "../table.js";
import { fail } from "../toast.js";

const PAGE_ROWS = 200;
const MOST_ROWS = 20000;
const MOST_READ = 20;
const SHOW_MS = 250;
const ANEW_MS = 2000;
const STATES = ["start", "standby", "processing", "data_available", "error"];
const WHOLE_ID = /^[A-Za-z0-9_.-]{1,128}$/;

const timeOf = (text) => (text ? new Date(text).getTime() : "");

export default function jobs(page, { query: asked }) {
  page.root.className = "fixed";
  const search = h("input", { type: "search", placeholder: "Search by id; Enter opens", "aria-label": "Search by id", value: asked.get("id") ?? "" });
  const state = h("select", { "aria-label": "State" }, h("option", { value: "" }, "any state"), STATES.map((each) => h("option", { value: each }, each)));
  const cmd = h("input", { placeholder: "function", "aria-label": "Function", size: 14, value: asked.get("cmd") ?? "" });
  const since = h("input", { type: "datetime-local", "aria-label": "Since", step: 1 });
  const until = h("input", { type: "datetime-local", "aria-label": "Until", step: 1 });
  const label = (text, field) => h("label", { className: "field name" }, text, field);
  const wide = (text, field) => h("label", { className: "field wide" }, text, field);
  const told = h("span", { className: "soft", role: "status" });
  const fresh = h("button", { type: "button", hidden: true, onclick: () => { table.element.scrollTop = 0; flush(); } });
  state.value = STATES.includes(asked.get("state")) ? asked.get("state") : "";
  page.head("Jobs", fresh, told);
  const form = h("div", { className: "filters", role: "search" },
    h("label", { className: "field search" }, "Job", search), label("State", state), label("Function", cmd),
    wide("Since", since), wide("Until", until));
  const table = new Table("Jobs", [
    { title: "Job", value: (row) => row.job_id, render: (row) => h("a", { href: link(row), className: "mono" }, row.job_id) },
    { title: "Function", width: "22%", value: (row) => (row.more ? `${row.cmd} + ${count(row.more)}` : row.cmd) },
    { title: "State", width: "148px", value: (row) => `${row.state} ${wordOf(row)}`, alike: true, render: (row) => stateOf(row.state, wordOf(row)) },
    { title: "Accepted", width: "150px", wide: true, value: (row) => moment(row.accepted_ms) },
    { title: "", width: "92px", wide: true, num: true, value: (row) => ago(row.accepted_ms) },
    { title: "Took", width: "76px", wide: true, num: true, value: (row) => (Number.isFinite(row.ended_ms) ? millis(Math.max(0, row.ended_ms - row.accepted_ms)) : "") },
  ], { key: (row) => row.job_id, open: (row) => { location.hash = link(row); }, end: () => more(), tall: true, empty: "No job is like that." });
  page.root.append(form, table.element);

  let rows = new Map(); // job_id -> row, the newest last
  let held = new Map(); // what came while somebody looks further below
  let following = null;
  let loading = null;
  let search_id = 0;

  function filters() {
    return { state: state.value, cmd: cmd.value.trim(), since: timeOf(since.value), until: timeOf(until.value) };
  }

  function fits(row) {
    const wanted = filters();
    if (wanted.state && ![...row.steps.values()].some((step) => step.state === wanted.state)) return false;
    if (wanted.cmd && ![...row.steps.values()].some((step) => step.cmd === wanted.cmd)) return false;
    if (wanted.since && row.accepted_ms < wanted.since) return false;
    return !(wanted.until && row.accepted_ms > wanted.until);
  }

  function draw() {
    const part = search.value.trim().toLowerCase();
    const shown = [...rows.values()].reverse().filter((row) => fits(row) && (!part || row.job_id.toLowerCase().includes(part)));
    table.show(shown);
    say(told, `${count(shown.length)} ${shown.length === 1 ? "job" : "jobs"}${following ? " so far" : ""}`);
    fresh.hidden = held.size === 0;
    say(fresh, `${count(held.size)} new`);
  }

  /** Let in what came. */
  function flush() {
    for (const [id, row] of held) rows.set(id, row);
    held = new Map();
    let over = rows.size - MOST_ROWS;
    for (const id of rows.keys()) {
      if (over-- <= 0) break;
      rows.delete(id);
    }
    draw();
  }

  async function load(mark) {
    const { jobs: found, next } = await get(`/jobs${query({ ...filters(), limit: PAGE_ROWS, before: mark })}`, page.signal);
    return { found: found.map(rowOf), next };
  }

  async function begin() {
    const mine = ++search_id;
    const { found, next } = await load("");
    if (mine !== search_id) return;
    rows = new Map(found.reverse().map((row) => [row.job_id, row]));
    held = new Map();
    following = next;
    draw();
  }

  function more() {
    if (!following || loading || rows.size >= MOST_ROWS) return;
    const mine = search_id;
    loading = load(following).then(({ found, next }) => {
      if (mine !== search_id) return;
      const older = new Map(found.reverse().filter((row) => !rows.has(row.job_id)).map((row) => [row.job_id, row]));
      rows = new Map([...older, ...rows]);
      following = older.size || next !== following ? next : null;
      draw();
    }).catch((error) => { if (!page.signal.aborted) fail(error); }).finally(() => { loading = null; });
  }

  async function opened(event) {
    event.preventDefault();
    const id = search.value.trim();
    if (!id) return;
    const [only] = table.rows;
    if (table.rows.length === 1) { location.hash = link(only); return; }
    try {
      if (!WHOLE_ID.test(id)) throw new Error(`${id} is no job's id.`);
      await get(`/jobs/${encodeURIComponent(id)}`, page.signal);
      location.hash = `#/job/${encodeURIComponent(id)}`;
    } catch (error) {
      fail(error);
    }
  }

  const shortly = page.calmly(() => { if (table.atTop) flush(); else draw(); }, SHOW_MS);
  page.on("step", (event) => {
    const known = rows.get(event.job_id);
    if (known) rows.set(event.job_id, take(known, event));
    else held.set(event.job_id, take(held.get(event.job_id), event));
    if (held.size > MOST_ROWS) held.delete(held.keys().next().value);
    shortly();
  });
  // Where messages were left out, what is shown may be old: the newest are read again, and what is in sight.
  const anew = page.calmly(async () => {
    const mine = search_id;
    const { found } = await load("");
    const unfinished = table.inSight.filter((row) => !Number.isFinite(row.ended_ms) && !found.some((each) => each.job_id === row.job_id));
    const read = await Promise.all(unfinished.slice(0, MOST_READ).map((row) => get(`/jobs/${row.job_id}`, page.signal).then(rowOf, () => null)));
    if (mine !== search_id) return;
    for (const row of [...found.reverse(), ...read.filter(Boolean)]) {
      if (rows.has(row.job_id)) rows.set(row.job_id, row);
      else held.set(row.job_id, row);
    }
    shortly();
  }, ANEW_MS);
  page.on("gap", anew);
  const tick = setInterval(() => table.refresh(), 1000);
  const again = () => {
    const wanted = Object.fromEntries(Object.entries({ state: state.value, cmd: cmd.value.trim() }).filter(([, value]) => value));
    history.replaceState(null, "", `#/jobs${query(wanted)}`);
    draw();
    begin().catch((error) => { if (!page.signal.aborted && !error.away) fail(error); });
  };
  for (const field of [state, cmd, since, until]) field.addEventListener("change", again);
  search.addEventListener("input", draw);
  search.addEventListener("keydown", (event) => { if (event.key === "Enter") opened(event); });
  page.on("link", ({ again: back }) => { if (back) again(); });
  page.until(() => { clearInterval(tick); table.close(); });
  again();
}

const link = (row) => `#/job/${encodeURIComponent(row.job_id)}`;
const wordOf = (row) => (row.more && row.state === "processing" ? `${row.done} of ${row.more + 1}` : row.state);
