// Reading text/event-stream (the HTML standard, section 9.2) out of pieces of text.

/** Feed it pieces; it calls `emit({ id, event, data })` for each message, `data` as text. */
export class Parser {
  #rest = "";
  #id = "";
  #event = "";
  #data = [];
  #emit;

  constructor(emit) {
    this.#emit = emit;
  }

  /** The id to go on from. */
  get lastId() {
    return this.#id;
  }

  feed(piece) {
    const lines = (this.#rest + piece).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") {
      if (this.#data.length) this.#emit({ id: this.#id, event: this.#event || "message", data: this.#data.join("\n") });
      this.#event = "";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "id") this.#id = value;
    else if (field === "event") this.#event = value;
    else if (field === "data") this.#data.push(value);
  }
}
