// One job: its picture, and of the step chosen all there is.

import { get, post, remove } from "../api.js";
import { h, put, stateOf } from "../dom.js";
import { count, sentence } from "../format.js";
import { Graph } from "../graph.js";
import { stateOfJob } from "../jobrows.js";
import { inOrder, nameOf } from "../layout.js";
import { allowed } from "../role.js";
import { StepView } from "../stepview.js";
import { follow } from "../stream.js";
import { Table } from "../table.js";
import { busy, toast } from "../toast.js";

const ANEW_MS = 700;
const DRAW_MS = 100;
const LOG_MS = 500;
const UNFINISHED = ["start", "standby", "processing"];

export default function job(page, { rest: [id] }) {
  const path = `/jobs/${encodeURIComponent(id)}`;
  let told = null; // as REST says
  let steps = [];
  let chosen = null; // the name of a step
  let only = null; // names of the steps of a box of the picture

  const state = h("span");
  const act = (word, kind, work) => h("button", { type: "button", className: kind, onclick: busy(work), hidden: true }, word);
  const retry = allowed("submit", () => act("Retry", "main", async () => {
    const { retried } = await post(`${path}/retry`);
    toast(retried ? `${count(retried)} ${retried === 1 ? "step runs" : "steps run"} again.` : "Nothing of it has failed.");
    restart();
  }));
  const cancel = allowed("submit", () => act("Cancel", "risk", async () => {
    const { cancelled } = await remove(path);
    toast(cancelled ? `${count(cancelled)} ${cancelled === 1 ? "step is" : "steps are"} cancelled.` : "It had ended already.");
  }));
  page.head(id, state, cancel, retry);
  page.root.firstElementChild.querySelector("h1").classList.add("mono");

  const graph = new Graph((names) => { only = names.length > 1 ? new Set(names) : null; choose(names[0]); });
  const table = new Table("Steps", [
    { title: "Step", value: (row) => row.from, render: (row) => h("button", { type: "button", className: "plain", onclick: () => choose(nameOf(row)) }, row.from) },
    { title: "To", wide: true, value: (row) => [row.to].flat().join(", ") },
    { title: "Function", value: (row) => row.cmd },
    { title: "State", width: "148px", value: (row) => row.state, alike: true, render: (row) => stateOf(row.state) },
    { title: "Attempt", width: "76px", wide: true, num: true, value: (row) => row.attempt || "" },
  ], { key: nameOf, open: (row) => choose(nameOf(row)) });
  const many = h("section", { className: "stack", hidden: true }, graph.element, table.element);
  const view = new StepView();
  const whole = h("section", { className: "card", hidden: true });
  page.root.append(many, whole, view.element);

  function choose(name) {
    chosen = name;
    draw();
    log();
  }

  const current = () => steps.find((step) => nameOf(step) === chosen) ?? steps.find((step) => step.state === "error") ?? steps[0];

  function draw() {
    if (!steps.length) return;
    const now = stateOfJob(steps);
    put(state, stateOf(now));
    if (retry) retry.hidden = !steps.some((step) => step.state === "error");
    if (cancel) cancel.hidden = !steps.some((step) => UNFINISHED.includes(step.state));
    many.hidden = steps.length === 1;
    if (steps.length > 1) {
      graph.show(steps);
      table.show(only ? steps.filter((step) => only.has(nameOf(step))) : steps);
    }
    whole.hidden = steps.length === 1 || told?.EOJ === undefined;
    if (!whole.hidden) put(whole, h("header", {}, h("h2", {}, "Result of the whole job")), view.valueOf(told.EOJ));
    view.show(current());
  }

  function adopt(body) {
    told = body;
    steps = inOrder(body.steps);
    draw();
  }

  async function readLog() {
    const step = current();
    if (!step) return;
    const { steps: logs } = await get(`${path}/log`, page.signal);
    const found = logs.find((each) => nameOf(each) === nameOf(step));
    view.showLog(found?.attempts ?? []);
  }

  const log = page.calmly(readLog, LOG_MS);
  const anew = page.calmly(async () => { adopt(await get(path, page.signal)); }, ANEW_MS);
  const redraw = page.calmly(draw, DRAW_MS);

  function heard(event, data) {
    if (event === "job" || event === "end") { adopt(data); log(); return; }
    const known = steps.find((step) => isOf(step, data));
    if (!known) { anew(); return; }
    if (event === "step") {
      Object.assign(known, { state: data.state, status: data.status, attempt: data.attempt });
      if (!UNFINISHED.includes(data.state)) anew(); // its result, error and times stand only there
      else if (data.state === "processing") { known.sent_ms = data.at_ms; delete known.error; delete known.waits; }
    } else if (event === "progress") {
      known.progress = { fraction: data.fraction, text: data.text };
    }
    redraw();
    if (known === current() && (data.log || event === "step")) log();
  }

  let stop = () => {};
  let ended = false;
  function restart() {
    stop();
    ended = false;
    let opened = false;
    const hear = (event, data) => {
      opened = true;
      ended = event === "end";
      heard(event, data);
    };
    stop = follow(`${path}/events`, hear, { last: "end", linked: (there, error) => {
      if (!there && !opened && error?.status === 404) missing(error);
    } });
  }

  function missing(error) {
    if (steps.length) return;
    put(page.root);
    page.head(id);
    page.root.append(h("p", {}, `${sentence(error.message)} ${error.fix}`), h("p", {}, h("a", { href: "#/jobs" }, "To the jobs")));
  }

  page.on("step", ({ job_id }) => { if (ended && job_id === id) restart(); }); // somebody has run it again
  page.until(() => { stop(); table.close(); });
  const tick = setInterval(() => view.refresh(), 1000);
  page.until(() => clearInterval(tick));
  get(path, page.signal).then((body) => { adopt(body); log(); restart(); }, (error) => {
    if (page.signal.aborted) return;
    if (error.status === 404 || error.status === 400) missing(error);
    else if (error.away) restart();
    else throw error;
  });
}

/** Whether an event is of this step: of progress it is not told where the step goes. */
function isOf(step, event) {
  return event.to === undefined ? step.from === event.from && step.state === "processing" : nameOf(step) === nameOf(event);
}
