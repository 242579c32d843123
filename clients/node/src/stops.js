// Hearing of stops without missing one. Pure.
//
// Events only lower latency: each has the router's epoch and a number. After a gap, a new epoch or a
// reconnect one asks for a SNAPSHOT, and every HB_ACK repeats the newest stops. A stop may so come
// several times, and an old one late: who heeds it must not mind.

export class Subscription {
  #epoch = 0;
  #seq = null; // of the newest event seen; null: not known yet
  #known = new Set(); // as the router told them last
  #give;
  #ask;

  /** `give(type, uuid)` is called with each stop, `ask()` when a SNAPSHOT of "stops" is needed. */
  constructor(give, ask) {
    this.#give = give;
    this.#ask = ask;
  }

  welcomed(epoch) {
    if (epoch !== this.#epoch) {
      [this.#epoch, this.#seq] = [epoch, null];
      this.#known.clear();
    }
    this.#ask();
  }

  event(epoch, seq, body) {
    if (epoch === this.#epoch) {
      if (this.#seq !== null && seq > this.#seq + 1) this.#ask();
      this.#seq = Math.max(this.#seq ?? 0, seq);
    }
    if (!Array.isArray(body) || body.length !== 2) return;
    if (body[1]) this.#known.add(body.join(":")); // a type alone is told by events only
    this.#give(...body);
  }

  acknowledged(epoch, seq, stops) {
    if (epoch === this.#epoch && this.#seq !== null && seq > this.#seq) this.#ask();
    this.#fresh(stops);
  }

  snapshot(epoch, seq, stops) {
    if (epoch === this.#epoch) this.#seq = Math.max(this.#seq ?? 0, seq);
    this.#fresh(stops);
  }

  #fresh(stops) {
    const before = this.#known;
    this.#known = new Set(stops.map((stop) => stop.join(":")));
    for (const stop of stops) if (!before.has(stop.join(":"))) this.#give(...stop);
  }
}

/** A queue that is read by `for await`. `onEnd` is called when its reader leaves. */
export class Listener {
  #waiting = [];
  #arrived = [];
  #ended = false;
  #onEnd;

  constructor(onEnd) {
    this.#onEnd = onEnd;
  }

  push(value) {
    const reader = this.#waiting.shift();
    if (reader) reader({ value, done: false });
    else if (!this.#ended) this.#arrived.push(value);
  }

  end() {
    this.#ended = true;
    for (const reader of this.#waiting.splice(0)) reader({ value: undefined, done: true });
  }

  next() {
    if (this.#arrived.length) return Promise.resolve({ value: this.#arrived.shift(), done: false });
    if (this.#ended) return Promise.resolve({ value: undefined, done: true });
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  return() {
    this.#onEnd(this);
    this.end();
    this.#arrived = [];
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}
