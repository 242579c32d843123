// Making elements. Text is always set as text: nothing that comes from a job is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(2)) {
    if (child !== undefined && child !== null && child !== false) element.append(child);
  }
}

/** Make an element: `h("a", { href: "#/" }, "text", …)`; `onclick` and its like are listeners. */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

/** The same for SVG. */
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

/** Put these in the place of what is in an element. */
export function put(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

/** Set an element's text, if it is another: so that nothing is laid out in vain. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// What each state looks like without its colour: paths in a box of 12.
const SIGNS = {
  start: "M6 2a4 4 0 1 0 .01 0z",
  standby: "M4 2.5v7M8 2.5v7",
  processing: "M3.5 2l6 4-6 4z",
  data_available: "M2 6.5l2.7 2.8L10 3.2",
  error: "M2.8 2.8l6.4 6.4M9.2 2.8L2.8 9.2",
};
const LIKE = { running: "processing", starting: "start", ticking: "processing", ready: "processing", stopped: "data_available",
  failed: "error", away: "error", spoilt: "error", paused: "standby", stopping: "standby", ended: "data_available" };

/** The path of a state's sign, in a box of 12. */
export const signPath = (state) => SIGNS[LIKE[state] ?? state] ?? SIGNS.start;

/** A state as people see it: sign, colour and word. */
export function stateOf(state, word = state) {
  const sign = s("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" },
    s("path", { d: signPath(state), fill: "none", stroke: "currentColor", "stroke-width": "1.8", "stroke-linejoin": "round" }));
  return h("span", { className: "state", "data-state": state }, sign, word);
}

/** A bar of progress; `fraction` from 0 to 1. */
export function bar(fraction, label, broad = false) {
  const inner = h("i");
  const value = Math.min(Math.max(fraction, 0), 1);
  inner.style.transform = `scaleX(${value})`;
  return h("span", { className: broad ? "bar broad" : "bar", role: "progressbar", "aria-label": label,
    "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * value) }, inner);
}
