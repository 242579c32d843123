// Messages in the corner. An error stays long enough to be read, or while the pointer is on it; the same one twice is shown once.

import { h } from "./dom.js";
import { sentence } from "./format.js";

const SHOWN_MS = 6000;
const ERROR_MS = 20000;
const MOST = 5;
const box = () => document.getElementById("toasts");

/** Show a message; `kind` is "error" or "". `fix` says what to do. Returns its element. */
export function toast(text, { kind = "", fix = "" } = {}) {
  const there = [...box().children].find((each) => each.dataset.text === text);
  if (there) return there;
  const close = h("button", { type: "button", "aria-label": "Close this message", onclick: () => shown.remove() }, "✕");
  const shown = h("div", { className: `toast ${kind}`, "data-text": text, role: kind === "error" ? "alert" : "status" },
    h("p", {}, text), close, fix && h("p", { className: "fix" }, fix));
  box().append(shown);
  while (box().children.length > MOST) box().firstElementChild.remove();
  const leave = () => { if (shown.matches(":hover, :focus-within")) setTimeout(leave, SHOWN_MS); else shown.remove(); };
  setTimeout(leave, kind === "error" ? ERROR_MS : SHOWN_MS);
  return shown;
}

/** Show what went wrong. What was given up on purpose is nothing to tell. */
export function fail(error) {
  if (error?.name === "AbortError") return;
  toast(sentence(error?.message ?? String(error)), { kind: "error", fix: error?.fix ?? "" });
}

/** Make a listener for a button: while its work is under way the button rests, and what goes wrong is shown. */
export function busy(work) {
  return async (event) => {
    const button = event.currentTarget;
    event.preventDefault();
    button.disabled = true;
    try {
      await work(event);
    } catch (error) {
      fail(error);
    } finally {
      button.disabled = false;
    }
  };
}
