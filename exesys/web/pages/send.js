// A form that sends a command, and shows what becomes of it.

import { get, post } from "../api.js";
import { h, put, say, stateOf } from "../dom.js";
import { json } from "../format.js";
import { allowed } from "../role.js";
import { fail } from "../toast.js";

const OPTIONS = [
  ["queue", "text", "default"], ["priority", "number", "4"], ["delay_s", "number", "0"], ["timeout_s", "number", ""],
  ["retries", "number", "0"], ["job_id", "text", "made for you"], ["key", "text", ""],
];

export default function send(page, { query: asked }) {
  page.head("Send a command");
  if (!allowed("submit", () => true)) {
    page.root.append(h("p", {}, "Your token may read only."));
    return;
  }
  const names = h("datalist", { id: "functions" });
  const cmd = h("input", { list: "functions", required: true, autocomplete: "off", spellcheck: "false", placeholder: "choose or type", value: asked.get("cmd") ?? "" });
  const about = h("p", { className: "soft", role: "status" });
  const data = h("textarea", { rows: 8, spellcheck: "false", placeholder: '{"path": "docs"}   [1, 2, 3]   "text"   or nothing' });
  const wrong = h("p", { className: "say", role: "status", id: "wrong" });
  data.setAttribute("aria-describedby", "wrong");
  const options = OPTIONS.map(([name, type, hint]) => [name, type, h("input", { type, placeholder: hint, name, step: type === "number" ? "any" : null })]);
  const sent = h("section", { className: "card", hidden: true, "aria-live": "polite" });
  const button = h("button", { className: "main" }, "Send");
  const form = h("form", { className: "card form", onsubmit: (event) => { event.preventDefault(); button.disabled || go(); } },
    h("label", { className: "field" }, "Function", cmd), names, about,
    h("label", { className: "field" }, "Data, as JSON", data), wrong,
    h("details", {}, h("summary", {}, "Options"), h("div", { className: "options" }, options.map(([name, , field]) => h("label", { className: "field" }, name, field)))),
    h("div", {}, button));
  page.root.append(form, sent);

  let functions = [];
  let job_id = "";

  function parsed() {
    const text = data.value.trim();
    if (!text) return { value: null };
    try {
      return { value: JSON.parse(text) };
    } catch (error) {
      return { problem: `That is no JSON: ${error.message}. A text stands between double quotes.` };
    }
  }

  function check() {
    const { problem = "" } = parsed();
    data.classList.toggle("wrong", problem !== "");
    data.setAttribute("aria-invalid", String(problem !== ""));
    say(wrong, problem);
    return !problem;
  }

  function explain() {
    const found = functions.find((each) => [each.name, `${each.module}.${each.name}`].includes(cmd.value.trim()));
    say(about, found ? `${found.name}${found.signature} – ${found.doc}` : "");
  }

  async function go() {
    if (!check()) { data.focus(); return; }
    const body = { cmd: cmd.value.trim() };
    for (const [name, type, field] of options) {
      if (field.value !== "") body[name] = type === "number" ? Number(field.value) : field.value;
    }
    button.disabled = true;
    try {
      // As it was typed: numbers that JavaScript would round are sent as they stand.
      const typed = data.value.trim() || "null";
      show(await post("/sys_cmd", `${JSON.stringify(body).slice(0, -1)},"data":${typed}}`));
    } catch (error) {
      fail(error);
    } finally {
      button.disabled = false;
    }
  }

  function show(told) {
    job_id = told.job_id;
    sent.hidden = false;
    put(sent, h("header", {}, h("h2", {}, h("a", { href: `#/job/${encodeURIComponent(job_id)}`, className: "mono" }, job_id)), h("span", { className: "end" }, stateOf(told.state))),
      told.result && h("pre", { className: "value", tabindex: 0 }, json(told.result.EOJ)),
      told.error && h("p", {}, `${told.error.type}: ${told.error.message}`));
  }

  // What was sent is asked for again when an event, or the next second, says that it has gone on.
  const anew = page.calmly(async () => {
    if (!job_id) return;
    const { steps: [step] } = await get(`/jobs/${encodeURIComponent(job_id)}`, page.signal);
    show({ ...step, job_id });
  }, 300);
  page.on("step", (event) => { if (event.job_id === job_id) anew(); });
  page.on("stats", () => { if (job_id && !sent.querySelector("pre, [data-state=error]")) anew(); });
  cmd.addEventListener("input", explain);
  data.addEventListener("input", check);
  get("/functions", page.signal).then((told) => {
    functions = told.functions;
    put(names, functions.map((each) => h("option", { value: each.name }, each.doc.slice(0, 80))));
    explain();
  }).catch((error) => { if (!page.signal.aborted) fail(error); });
}
