// A table that draws only the rows in sight, so that ten thousand cost as much as thirty.
//
// A column is { title, value, render?, alike?, width?, num?, wide? }: `value(row)` gives text or a number, `render(row)`
// an element in its place; a cell is drawn anew only when its value has changed, so that a button keeps its focus.
// `alike`: rows of the same value have the same element. `wide` columns are left out on a phone. A row is known by
// `key(row)`; a line that is out of sight is used for another.

import { h, put } from "./dom.js";

const MARGIN = 8; // rows drawn above and below those in sight

export class Table {
  #columns;
  #key;
  #rows = [];
  #places = new Map(); // key -> place
  #drawn = new Map(); // key -> { key, line, cells, values }
  #current = null; // the key of the row the keyboard is at
  #frame = 0;
  #body = h("tbody");
  #above = h("tr", { className: "spacer", "aria-hidden": "true" }, h("td"));
  #below = h("tr", { className: "spacer", "aria-hidden": "true" }, h("td"));
  #empty;
  #table;
  #options;
  #row_px = 32;

  /** `open(row)` is what Enter does; `end()` is called when the last rows come into sight. */
  constructor(label, columns, { key, open = null, end = null, empty = "Nothing here.", tall = false }) {
    this.#columns = columns;
    this.#key = key;
    this.#options = { open, end };
    const heads = columns.map((column) => h("th", { scope: "col", className: this.#kind(column) }, column.title));
    columns.forEach((column, place) => { if (column.width) heads[place].style.width = column.width; });
    this.#table = h("table", { "aria-label": label }, h("thead", {}, h("tr", {}, heads)), this.#body);
    this.#empty = h("p", { className: "empty" }, empty);
    this.element = h("div", { className: "table", tabindex: 0, role: "region", "aria-label": label,
      onscroll: () => this.#later(), onkeydown: (event) => this.#pressed(event) }, this.#table, this.#empty);
    if (!tall) this.element.style.maxHeight = "420px";
    this.#body.append(this.#above, this.#below);
    this.#sizes = new ResizeObserver(() => this.#later());
    this.#sizes.observe(this.element);
  }

  #sizes;

  get rows() {
    return this.#rows;
  }

  /** Whether its first rows are in sight. */
  get atTop() {
    return this.element.scrollTop < this.#row_px;
  }

  /** The rows that are drawn. */
  get inSight() {
    return [...this.#drawn.keys()].map((key) => this.row(key)).filter(Boolean);
  }

  /** Show these rows in the place of those before. */
  show(rows) {
    this.#rows = rows;
    this.#places = new Map(rows.map((row, place) => [this.#key(row), place]));
    this.#table.setAttribute("aria-rowcount", rows.length + 1);
    this.#table.hidden = rows.length === 0;
    this.#empty.hidden = rows.length !== 0;
    this.#later();
  }

  /** A row has changed, or the time has. */
  refresh() {
    this.#later();
  }

  row(key) {
    return this.#rows[this.#places.get(key)];
  }

  close() {
    cancelAnimationFrame(this.#frame);
    this.#sizes.disconnect();
  }

  #kind = (column) => [column.num && "num", column.wide && "wide"].filter(Boolean).join(" ");

  #later() {
    this.#frame ||= requestAnimationFrame(() => { this.#frame = 0; this.#draw(); });
  }

  #draw() {
    const box = this.element;
    const first = Math.max(0, Math.floor(box.scrollTop / this.#row_px) - MARGIN);
    const last = Math.min(this.#rows.length, first + Math.ceil(box.clientHeight / this.#row_px) + 2 * MARGIN);
    const rows = this.#rows.slice(first, last);
    const wanted = new Set(rows.map(this.#key));
    const spare = [...this.#drawn.values()].filter(({ key }) => !wanted.has(key));
    for (const { key } of spare) this.#drawn.delete(key);
    let before = this.#above;
    rows.forEach((row, number) => {
      const key = this.#key(row);
      const drawn = this.#drawn.get(key) ?? this.#line(key, spare.shift());
      this.#set(drawn, row, first + number);
      if (before.nextSibling !== drawn.line) before.after(drawn.line);
      before = drawn.line;
    });
    for (const { line } of spare) line.remove();
    this.#height(this.#above, first);
    this.#height(this.#below, this.#rows.length - last);
    if (last === this.#rows.length && last > 0) this.#options.end?.();
  }

  #height(spacer, rows) {
    const height = `${rows * this.#row_px}px`;
    if (spacer.style.height !== height) spacer.style.height = height;
    spacer.hidden = rows === 0;
  }

  /** Make the line of a row, out of one that is free if there is one. */
  #line(key, free) {
    const drawn = free ?? this.#fresh();
    drawn.key = key;
    this.#columns.forEach(({ render, alike }, at) => { if (render && !alike) drawn.values[at] = undefined; });
    this.#drawn.set(key, drawn);
    return drawn;
  }

  #fresh() {
    const cells = this.#columns.map((column) => h("td", { className: this.#kind(column) }));
    const drawn = { key: "", line: h("tr", {}, cells), cells, values: [] };
    drawn.line.addEventListener("click", () => this.#choose(drawn.key));
    return drawn;
  }

  #set(drawn, row, place) {
    drawn.line.setAttribute("aria-rowindex", place + 2);
    drawn.line.classList.toggle("current", this.#key(row) === this.#current);
    this.#columns.forEach((column, at) => {
      const value = column.value(row);
      if (drawn.values[at] === value && value !== undefined) return;
      drawn.values[at] = value;
      if (column.render) put(drawn.cells[at], column.render(row));
      else drawn.cells[at].textContent = value ?? "";
    });
  }

  #choose(key) {
    this.#current = key;
    this.#later();
  }

  #pressed(event) {
    if (event.target !== this.element && event.key === "Enter") return; // a button or a link in a row
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 15, PageUp: -15, Home: -Infinity, End: Infinity };
    const at = this.#places.get(this.#current) ?? -1;
    if (event.key in steps && !event.ctrlKey && !event.metaKey && this.#rows.length) {
      const place = Math.min(Math.max(at + steps[event.key], 0), this.#rows.length - 1);
      this.#current = this.#key(this.#rows[place]);
      this.#into(place);
    } else if (event.key === "Enter" && at >= 0) {
      this.#options.open?.(this.#rows[at]);
    } else {
      return;
    }
    event.preventDefault();
    this.#later();
  }

  #into(place) {
    const box = this.element;
    const head_px = this.#row_px;
    const top = place * this.#row_px;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + 2 * head_px > box.scrollTop + box.clientHeight) box.scrollTop = top + 2 * head_px - box.clientHeight;
  }
}
