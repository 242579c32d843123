// What every page needs: its head, listeners that end with it, and questions asked again and again.

import { h } from "./dom.js";
import { fail } from "./toast.js";
import * as live from "./live.js";

/** One showing of a page; when it is left, all that it began ends. */
export class Page {
  #ends = [];
  #gone = new AbortController();

  constructor(root) {
    this.root = root;
  }

  get signal() {
    return this.#gone.signal;
  }

  /** Call `end` when the page is left. */
  until(end) {
    this.#ends.push(end);
  }

  /** Listen to events while the page is shown. */
  on(event, listener) {
    this.until(live.on(event, listener));
  }

  /** The page's heading, with what stands at its end. */
  head(title, ...end) {
    document.title = `${title} · ExeSys`;
    const head = h("div", { className: "head" }, h("h1", {}, title), h("div", { className: "end" }, end));
    this.root.append(head);
    return head;
  }

  /** Do `work(signal)` now and every `every_ms`, while the page is shown and in sight. Returns what does it at once. */
  again(work, every_ms) {
    let timer = 0;
    let running = null;
    let told = false;
    const once = async () => {
      clearTimeout(timer);
      running ??= (async () => {
        try {
          if (!document.hidden) await work(this.signal);
          told = false;
        } catch (error) {
          if (this.signal.aborted) return;
          if (!told && !error.away) fail(error); // that REST is away is told once, for all
          told = true;
        } finally {
          running = null;
          if (!this.signal.aborted) timer = setTimeout(once, every_ms);
        }
      })();
      return running;
    };
    this.until(() => clearTimeout(timer));
    const seen = () => { if (!document.hidden) once(); };
    document.addEventListener("visibilitychange", seen);
    this.until(() => document.removeEventListener("visibilitychange", seen));
    this.on("link", ({ again }) => { if (again) once(); });
    once();
    return once;
  }

  /** Call `work` at most once in `every_ms`, never while it is under way, and once more if it was wanted meanwhile. */
  calmly(work, every_ms) {
    let timer = 0;
    let running = false;
    let wanted = false;
    let last = -Infinity;
    this.until(() => clearTimeout(timer));
    const begin = async () => {
      timer = 0;
      running = true;
      last = performance.now();
      try {
        await work();
      } catch (error) {
        if (!this.signal.aborted && !error.away) fail(error);
      }
      running = false;
      if (wanted && !this.signal.aborted) soon();
    };
    const soon = () => {
      wanted = running;
      if (!running) timer ||= setTimeout(begin, Math.max(0, last + every_ms - performance.now()));
    };
    return soon;
  }

  leave() {
    this.#gone.abort();
    this.#ends.forEach((end) => end());
  }
}
