// A stream of events that goes on: it is opened again when it breaks, from where it was.
// EventSource cannot send a token, so it is read with fetch.

import { ApiError, open } from "./api.js";
import { Parser } from "./sse.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;
const SILENT_MS = 30000; // no word for so long: the connection is a dead one

const pause = (ms, signal) => new Promise((done) => {
  const timer = setTimeout(done, ms);
  signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
});

/** Wait until this page is in sight. */
const sight = (signal) => new Promise((done) => {
  const look = () => {
    if (document.hidden && !signal.aborted) return;
    document.removeEventListener("visibilitychange", look);
    done();
  };
  document.addEventListener("visibilitychange", look);
  signal.addEventListener("abort", look, { once: true });
  look();
});

/**
 * Follow a stream until the function returned is called.
 *
 * `on(event, data, id)` gets each message, its data read as JSON. `linked(true)` is said when it was opened,
 * `linked(false, error)` when it broke. It ends by itself after the event `last`, or when REST refuses it.
 * While the page is out of sight it lets go: a browser has six connections to a server, for all its tabs together.
 */
export function follow(path, on, { linked = () => {}, last = "" } = {}) {
  const end = new AbortController();
  let lastId = "";
  let ended = false;

  async function once() {
    const dead = new AbortController();
    const signal = AbortSignal.any([end.signal, dead.signal]);
    let timer = 0;
    const heard = () => { clearTimeout(timer); timer = setTimeout(() => dead.abort(), SILENT_MS); };
    const look = () => { if (document.hidden) dead.abort(); };
    document.addEventListener("visibilitychange", look);
    heard();
    try {
      const extra = lastId ? { "Last-Event-ID": lastId } : {};
      const answer = await open(path, { accept: "text/event-stream", signal, extra });
      linked(true);
      const parser = new Parser(({ id, event, data }) => {
        lastId = id;
        on(event, JSON.parse(data), id);
        ended ||= event === last;
      });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        heard();
        parser.feed(value);
      }
    } finally {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
    }
  }

  (async () => {
    let wait_ms = FIRST_WAIT_MS;
    while (!end.signal.aborted && !ended) {
      await sight(end.signal);
      const before = performance.now();
      let why = null;
      try {
        await once();
      } catch (error) {
        why = error;
      }
      if (end.signal.aborted || ended) return;
      if (document.hidden) continue;
      linked(false, why);
      if (why instanceof ApiError && !why.away && why.status !== 429) return;
      if (performance.now() - before > LONGEST_WAIT_MS) wait_ms = FIRST_WAIT_MS;
      await pause(wait_ms, end.signal);
      wait_ms = Math.min(2 * wait_ms, LONGEST_WAIT_MS);
    }
  })();
  return () => end.abort();
}
