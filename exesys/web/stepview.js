// All there is of one step: where it is, since when, what it got, what it gave, what went wrong, what it printed.

import { bar, h, put, say, stateOf } from "./dom.js";
import { ago, count, json, millis, moment } from "./format.js";
import { nameOf } from "./layout.js";

const MOST_LETTERS = 100000; // of a value: more would hold up the page
const NEAR_PX = 24; // so near its end a log goes on following

export class StepView {
  #step = null;
  #attempts = [];
  #attempt = 0; // the one whose log is shown; 0 for the newest
  #facts = h("dl", { className: "facts" });
  #progress = h("div", { hidden: true });
  #problem = h("section", { className: "card problem", hidden: true });
  #values = h("div", { className: "pair" });
  #told = new Map(); // name of a fact -> its element
  #seen = [];
  #shown = "";
  #tabs = h("div", { className: "tabs end" });
  #log = h("pre", { className: "value log", tabindex: 0, "aria-label": "Log" });
  #title = h("h2");
  #state = h("span", { className: "end" });

  constructor() {
    this.element = h("div", { className: "stack", hidden: true },
      h("section", { className: "card" }, h("header", {}, this.#title, this.#state), this.#progress, this.#facts),
      this.#problem, this.#values,
      h("section", { className: "card" }, h("header", {}, h("h2", {}, "Log"), this.#tabs), this.#log));
  }

  /** A value of JSON, set out; very long ones are cut. */
  valueOf(value) {
    const text = typeof value === "string" ? JSON.stringify(value) : json(value) ?? "";
    const cut = text.length > MOST_LETTERS;
    return h("pre", { className: "value", tabindex: 0 }, cut ? `${text.slice(0, MOST_LETTERS)}\n… ${count(text.length - MOST_LETTERS)} more letters: GET the job to have them` : text);
  }

  /** Show this step, as it is now. */
  show(step) {
    if (nameOf(step) !== (this.#step && nameOf(this.#step))) {
      this.#attempt = 0;
      this.showLog([]);
    }
    this.#step = step;
    this.element.hidden = false;
    put(this.#title, `${step.from} → ${[step.to].flat().join(", ")}`);
    put(this.#state, stateOf(step.state));
    this.refresh();
    const fraction = step.progress?.fraction;
    this.#progress.hidden = fraction === undefined;
    if (fraction !== undefined) {
      put(this.#progress, bar(fraction, "Progress", true), h("p", { className: "soft" }, `${Math.round(100 * fraction)} %  ${step.progress.text ?? ""}`));
    }
    const seen = [step.data, step.result, step.error, step.state];
    if (seen.every((value, place) => value === this.#seen[place]) && this.#seen.length) return;
    this.#seen = seen;
    const shown = JSON.stringify(seen);
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#showProblem(step);
    const card = (title, content) => h("section", { className: "card" }, h("header", {}, h("h2", {}, title)), content);
    const gone = step.state === "data_available";
    put(this.#values,
      card("Input", "data" in step ? this.valueOf(step.data) : h("p", { className: "soft" }, gone ? "It is not kept once a step has ended well." : "None yet.")),
      card("Result", step.result ? this.valueOf(step.result.EOJ) : h("p", { className: "soft" }, step.state === "error" ? "None: it failed." : "None yet.")));
  }

  #showProblem(step) {
    const { error } = step;
    this.#problem.hidden = !error || step.state !== "error";
    if (!error) return;
    put(this.#problem, h("header", {}, h("h2", {}, `${error.type}`), h("span", { className: "soft end" }, `after ${count(error.attempts)} ${error.attempts === 1 ? "attempt" : "attempts"}`)),
      h("p", {}, error.message), error.traceback && h("pre", { className: "value", tabindex: 0, "aria-label": "Traceback" }, error.traceback.trimEnd()));
  }

  /** The times have gone on. */
  refresh() {
    const step = this.#step;
    if (!step) return;
    const began = step.began_ms ?? step.sent_ms;
    const took = Number.isFinite(step.ended_ms) && Number.isFinite(began) ? `, took ${millis(Math.max(0, step.ended_ms - began))}` : "";
    const rows = [
      step.waits && ["Waits", step.waits],
      ["Function", step.cmd],
      step.queue && ["Queue", step.queue],
      ["Attempt", count(step.attempt)],
      step.worker && ["Worker", step.worker],
      ["Accepted", time(step.accepted_ms)],
      began && ["Began", time(began)],
      step.ended_ms && ["Ended", `${time(step.ended_ms)}${took}`],
      step.notify && ["Told", `${step.notify.url}: ${step.notify.state ?? "ended"}`],
    ].filter(Boolean);
    const names = rows.map(([name]) => name).join();
    if (names !== [...this.#told.keys()].join()) {
      this.#told = new Map(rows.map(([name]) => [name, h("dd")]));
      put(this.#facts, [...this.#told].map(([name, value]) => [h("dt", {}, name), value]));
    }
    for (const [name, value] of rows) say(this.#told.get(name), value);
  }

  /** Show the log of the attempts, [{ attempt, log }]; one that was read to its end goes on to follow. */
  showLog(attempts) {
    this.#attempts = attempts;
    put(this.#tabs, attempts.length > 1 && attempts.map(({ attempt }) => h("button", {
      type: "button", "aria-pressed": String(attempt === this.#wanted()),
      onclick: () => { this.#attempt = attempt; this.showLog(this.#attempts); },
    }, `Attempt ${attempt}`)));
    const box = this.#log;
    const following = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PX;
    const found = attempts.find(({ attempt }) => attempt === this.#wanted());
    say(box, found?.log || "Nothing was printed or logged.");
    if (following) box.scrollTop = box.scrollHeight;
  }

  #wanted = () => this.#attempt || this.#attempts.at(-1)?.attempt;
}

const time = (ms) => (Number.isFinite(ms) ? `${moment(ms)} (${ago(ms)})` : "–");
