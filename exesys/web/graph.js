// The picture of a job: its steps as boxes, who feeds whom as curves. States change in place.

import { h, put, s, say, signPath } from "./dom.js";
import { BOX, layout, nameOf } from "./layout.js";

export const MOST_ALONE = 60; // above it, steps that are alike are drawn as one
const LETTERS = 22;
const ORDER = ["error", "processing", "start", "standby", "data_available"]; // a group is shown as the first it has

const cut = (text, letters = LETTERS) => (text.length > letters ? `${text.slice(0, letters - 1)}…` : text);

export class Graph {
  #steps = [];
  #shape = "";
  #nodes = [];
  #chosen = null;
  #choose;
  #svg = s("svg", { role: "group", "aria-label": "The steps of this job" });

  /** `choose(names)` is called with the names of the steps of the box that was chosen. */
  constructor(choose) {
    this.#choose = choose;
    this.element = h("div", { className: "graph", tabindex: 0, role: "region", "aria-label": "Graph" }, this.#svg);
  }

  /** Show these steps. Only when there are others than before, all is laid out anew. */
  show(steps) {
    this.#steps = steps;
    const shape = steps.map((step) => `${nameOf(step)}|${step.cmd}`).join("\n");
    if (shape !== this.#shape) {
      this.#shape = shape;
      this.#build();
    }
    for (const node of this.#nodes) this.#paint(node);
  }

  #build() {
    const laid = layout(this.#steps, MOST_ALONE);
    this.#svg.setAttribute("viewBox", `0 0 ${laid.width} ${laid.height}`);
    this.#svg.setAttribute("width", laid.width);
    this.#svg.setAttribute("height", laid.height);
    const edges = laid.edges.map(({ from, to, through }) => {
      const middle = BOX.height / 2;
      let { x, y } = laid.nodes[from];
      let path = `M${x += BOX.width} ${y += middle}`;
      const bendTo = (endX, endY) => {
        const bend = (endX - x) / 2;
        path += `C${x + bend} ${y} ${endX - bend} ${endY} ${endX} ${endY}`;
        [x, y] = [endX, endY];
      };
      for (const point of through) {
        bendTo(point.x, point.y + 2);
        path += `H${x = point.x + BOX.width}`;
      }
      bendTo(laid.nodes[to].x, laid.nodes[to].y + middle);
      return s("path", { className: "edge", d: path });
    });
    this.#nodes = laid.nodes.map((node) => this.#box(node));
    put(this.#svg, edges, this.#nodes.map((node) => node.element));
  }

  #box({ steps: places, x, y }) {
    const first = this.#steps[places[0]];
    const names = places.map((place) => nameOf(this.#steps[place]));
    const many = places.length > 1;
    const sign = s("path", { className: "sign", transform: "translate(11 6)", "stroke-linejoin": "round" });
    const sub = s("text", { className: "sub", x: 12, y: 31 });
    const choose = () => {
      this.#chosen = names[0];
      this.#nodes.forEach((each) => this.#paint(each));
      this.#choose(names);
    };
    const element = s("g", {
      className: "node", transform: `translate(${x} ${y})`, tabindex: 0, role: "button", onclick: choose,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } },
    },
    many && s("rect", { x: 4, y: -4, width: BOX.width, height: BOX.height, rx: 6 }),
    s("rect", { className: "face", width: BOX.width, height: BOX.height, rx: 6 }),
    s("rect", { className: "side", width: 4, height: BOX.height - 10, y: 5, rx: 2 }),
    sign,
    s("text", { x: 28, y: 16 }, cut(many ? `${first.cmd} × ${places.length}` : first.from, 20)),
    sub);
    return { places, names, element, sign, sub, told: "" };
  }

  #paint(node) {
    const counts = new Map();
    for (const place of node.places) {
      const { state } = this.#steps[place];
      counts.set(state, (counts.get(state) ?? 0) + 1);
    }
    const state = ORDER.find((each) => counts.has(each));
    const first = this.#steps[node.places[0]];
    const many = node.places.length > 1;
    const progress = first.progress && state === "processing" ? ` ${Math.round(100 * first.progress.fraction)} %` : "";
    const text = many ? `${counts.get("data_available") ?? 0} done of ${node.places.length}` : first.cmd + progress;
    const chosen = node.names[0] === this.#chosen;
    const told = `${state}|${text}|${chosen}`;
    if (told === node.told) return;
    node.told = told;
    node.element.setAttribute("data-state", state);
    node.element.setAttribute("aria-label", `${many ? `${node.places.length} steps ${first.cmd}` : `${first.from}, ${first.cmd}`}: ${state}, ${text}`);
    node.element.classList.toggle("chosen", chosen);
    node.sign.setAttribute("d", signPath(state));
    say(node.sub, cut(text, 25));
  }
}
