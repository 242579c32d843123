// A plot over the last minutes: a few lines on a canvas, drawn when there is something new.

import { h, say } from "./dom.js";

const STEPS = [1, 2, 5];
const LEFT = 62;
const BOTTOM = 18;

/** The next larger of 1, 2, 5, 10, 20 …, so that the scale does not tremble. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * (STEPS.find((step) => step * power >= value) ?? 10);
}

/**
 * Lines are { name, ink (a custom property), dash?, of: (figures) => number or null }.
 * `unit(value)` writes a value; `span_s` is how much of the past is shown.
 */
export class Plot {
  #lines;
  #unit;
  #span_s;
  #figures = [];
  #canvas = h("canvas", { role: "img" });
  #now;
  #sizes = new ResizeObserver(() => this.#draw());

  constructor(title, lines, unit, span_s = 120) {
    this.#lines = lines;
    this.#unit = unit;
    this.#span_s = span_s;
    this.#now = lines.map(() => h("b"));
    const legend = lines.map((line, place) => {
      const mark = h("i", { className: line.dash ? "dash" : "" });
      mark.style.setProperty("--ink", `var(${line.ink})`);
      return h("span", {}, mark, `${line.name} `, this.#now[place]);
    });
    this.#title = title;
    this.element = h("section", { className: "card plot", "aria-label": title },
      h("header", {}, h("h2", {}, title), h("div", { className: "legend end" }, legend)), this.#canvas);
    this.#sizes.observe(this.#canvas);
  }

  #title;

  /** Show these figures, each with `at_ms`, the oldest first. */
  show(figures) {
    this.#figures = figures;
    const newest = figures.at(-1);
    this.#lines.forEach((line, place) => {
      const value = newest ? line.of(newest) : null;
      say(this.#now[place], value === null || value === undefined ? "–" : this.#unit(value));
    });
    const told = this.#lines.map((line, place) => `${line.name} ${this.#now[place].textContent}`).join(", ");
    this.#canvas.setAttribute("aria-label", `${this.#title}: ${told}`);
    this.#draw();
  }

  close() {
    this.#sizes.disconnect();
  }

  #draw() {
    const canvas = this.#canvas;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width) return;
    const scale = devicePixelRatio || 1;
    if (canvas.width !== width * scale) canvas.width = width * scale;
    if (canvas.height !== height * scale) canvas.height = height * scale;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const ink = (name) => this.#colour(style, name);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${style.fontFamily}`;

    const end_ms = this.#figures.at(-1)?.at_ms ?? Date.now();
    const since_ms = end_ms - 1000 * this.#span_s;
    const shown = this.#figures.filter((each) => each.at_ms >= since_ms);
    const values = shown.flatMap((each) => this.#lines.map((line) => line.of(each) ?? 0));
    const top = ceiling(Math.max(0, ...values));
    const x = (at_ms) => LEFT + ((at_ms - since_ms) / (end_ms - since_ms)) * (width - LEFT - 2);
    const y = (value) => 6 + (1 - value / top) * (height - BOTTOM - 6);

    pen.strokeStyle = ink("--line");
    pen.fillStyle = ink("--soft");
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const part of [0, 0.5, 1]) {
      const level = Math.round(y(part * top)) + 0.5;
      pen.beginPath();
      pen.moveTo(LEFT, level);
      pen.lineTo(width, level);
      pen.stroke();
      pen.fillText(this.#unit(part * top), LEFT - 7, level);
    }
    pen.textBaseline = "alphabetic";
    for (const [part, align, word] of [[0, "left", `−${this.#span_s} s`], [0.5, "center", `−${this.#span_s / 2} s`], [1, "right", "now"]]) {
      pen.textAlign = align;
      pen.fillText(word, LEFT + part * (width - LEFT - 2), height - 3);
    }
    pen.lineWidth = 1.7;
    pen.lineJoin = "round";
    for (const line of this.#lines) {
      pen.strokeStyle = ink(line.ink);
      pen.setLineDash(line.dash ? [4, 3] : []);
      pen.beginPath();
      let down = false;
      for (const each of shown) {
        const value = line.of(each);
        if (value === null || value === undefined) { down = false; continue; }
        if (down) {
          pen.lineTo(x(each.at_ms), y(value));
        } else { // a short stroke, so that a value by itself is seen, too
          pen.moveTo(x(each.at_ms) - 1.5, y(value));
          pen.lineTo(x(each.at_ms), y(value));
        }
        down = true;
      }
      pen.stroke();
    }
    pen.setLineDash([]);
  }

  // A custom property with light-dark() is resolved only where it is used as a colour.
  #colour(style, name) {
    this.#canvas.style.color = `var(${name})`;
    return style.color;
  }
}

