// The one stream of the whole page: steps and figures, to whoever wants them now.

import { follow } from "./stream.js";

const listeners = new Map(); // event -> set of functions
const KEPT = 150; // seconds of figures, so that a plot is full when its page is opened
const history = [];
let state = "connecting";

/** Call `listener(data)` for each event of this name; returns what ends that. Names: step, progress, gap, stats, link. */
export function on(event, listener) {
  if (!listeners.has(event)) listeners.set(event, new Set());
  listeners.get(event).add(listener);
  return () => listeners.get(event).delete(listener);
}

function tell(event, data) {
  listeners.get(event)?.forEach((listener) => listener(data));
}

/** The figures of the last minutes, the oldest first. */
export const figures = () => history;
/** connecting, live or away. */
export const link = () => state;

/** Begin. Returns what ends it. */
export function begin() {
  return follow("/events?kinds=step,progress,stats", (event, data) => {
    if (event === "stats") {
      history.push(data);
      if (history.length > KEPT) history.shift();
    }
    tell(event, data);
  }, {
    linked(there, error) {
      const before = state;
      state = there ? "live" : "away";
      if (state !== before) tell("link", { state, error, again: there && before === "away" });
      if (there && before === "away") tell("gap", { left_out: null });
    },
  });
}
