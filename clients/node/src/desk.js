// What one client has under way, and when to say what: the client's conversation of docs/protocol.md.
//
// Pure: calls, messages and `now` in (milliseconds that only grow), messages out. A command stays here
// until its end is known. What the router did not acknowledge is sent again, which is safe: it is known
// by job_id, from and to, and runs once. What it did acknowledge is asked for, in case a DONE was lost.

import { ExesysError, refusal } from "./errors.js";

const VERSION = 1;
const HELLO_AGAIN_MS = 1000;
const RECHECK_MS = 5000;
const UNANSWERED_MS = 10_000;
const ASK_AGAIN_MS = 2000; // CHANGE and SYNC, which may be asked again
const MOST_RECHECKED = 100,
  RECHECK_EVERY_MS = 100; // so that very many under way do not flood the router
const MOST_IN_MESSAGE = 1000,
  MOST_BYTES_IN_MESSAGE = 4 << 20;
const REFUSED = -1,
  LAST_UNDER_WAY = 2;

export class Desk {
  #session;
  #lastTag = 0;
  #flights = new Map(); // tag -> {tag, handle, item, query, notify, parcel, at}
  #agenda = new Map(); // tenth of a second -> tags to look at then
  #asks = new Map(); // tag -> {message, settle, at}
  #helloAt = -Infinity;
  #beatAt = -Infinity;
  #heardAt = -Infinity;

  /** `onEvent` is called with what is no answer to a command: (kind, fields). */
  constructor(session, onEvent) {
    this.#session = session;
    this.onEvent = onEvent;
    this.welcome = null;
  }

  get session() {
    return this.#session;
  }

  /** How many commands the router has not answered for. */
  get unanswered() {
    return [...this.#flights.values()].filter((flight) => flight.item).length;
  }

  // --- calls

  /** Take a command; `item` are the fields of an Item behind its tag and before `notify`. */
  put(handle, item, notify, standby) {
    this.#take(handle, [...item, notify, standby ? -1 : 0], notify, null);
  }

  /** Take the steps of a workflow, which go in one message. `told`: whether the end of each is to be told. */
  putWorkflow(handles, items, told) {
    const parcel = { flights: [], taken: false };
    const number = this.#lastTag + 1;
    handles.forEach((handle, at) => {
      parcel.flights.push(this.#take(handle, [...items[at], told[at], number], told[at], parcel));
    });
  }

  /** Take a question about a step. */
  putQuery(handle, notify) {
    this.#take(handle, null, notify, null);
  }

  #take(handle, item, notify, parcel) {
    const tag = ++this.#lastTag;
    const query = [tag, handle.job_id, handle.from, [handle.to].flat().join(","), notify];
    const flight = { tag, handle, item: item && [tag, ...item], query, notify, parcel, at: -Infinity };
    this.#flights.set(tag, flight);
    this.#plan(flight, 0);
    return flight;
  }

  /** Ask what CHANGED or SNAPSHOT answers; `settle` is called with the fields. Returns the tag, for `forget`. */
  ask(make, settle) {
    const tag = ++this.#lastTag;
    this.#asks.set(tag, { message: make(tag), settle, at: 0 });
    return tag;
  }

  forget(tag) {
    this.#asks.delete(tag);
  }

  // --- in

  receive([kind, ...fields], now) {
    this.#heardAt = now;
    switch (kind) {
      case "WELCOME":
        return this.#greeted(fields, now);
      case "SUBMIT_ACK":
      case "STATUS":
      case "DONE":
        return fields[0].forEach(([tag, state, body]) => this.#answered(this.#flights.get(tag), state, body, now));
      case "BUSY":
        return this.#busy(fields, now);
      case "MOVED":
        return this.#moved(fields);
      case "CHANGED":
      case "SNAPSHOT": {
        const asked = this.#asks.get(fields[0]);
        this.#asks.delete(fields[0]);
        return asked?.settle(fields);
      }
      case "BYE":
        return this.greetAgain();
      case "ERROR":
        if (fields[0] === "unknown_session") this.greetAgain();
        break;
    }
    this.onEvent(kind, fields);
  }

  #greeted([version, , epoch, heartbeat_s, misses, limits, endpoints], now) {
    this.welcome = {
      version,
      epoch,
      beatMs: 1000 * heartbeat_s,
      leaseMs: 1000 * heartbeat_s * misses,
      limits,
      endpoints,
    };
    this.#beatAt = -Infinity;
    // Perhaps it is a new router: everything under way goes out again.
    for (const flight of this.#flights.values()) this.#plan(flight, 0);
    for (const asked of this.#asks.values()) asked.at = 0;
    this.onEvent("WELCOME", this.welcome, now);
  }

  #answered(flight, state, body, now) {
    if (!flight) return; // the second time, or of nobody any more
    this.#settle(flight);
    if (state <= REFUSED) {
      this.#flights.delete(flight.tag);
      return flight.handle._refused(refusal(body));
    }
    if (state > LAST_UNDER_WAY || !flight.notify) this.#flights.delete(flight.tag);
    else this.#plan(flight, now + RECHECK_MS);
    flight.handle._heard(state, body);
  }

  /** It was taken or refused, and with it all that came in its parcel: none of that is sent again. */
  #settle(flight) {
    flight.item = null;
    if (flight.parcel && !flight.parcel.taken) {
      flight.parcel.taken = true;
      for (const other of flight.parcel.flights) other.item = null;
    }
  }

  #busy([tags, reason, retry_s], now) {
    for (const tag of tags) {
      const flight = this.#flights.get(tag);
      if (flight) this.#plan(flight, now + 1000 * retry_s);
    }
    this.onEvent("BUSY", [tags, reason, retry_s]);
  }

  /** It belongs to another shard, and this client speaks to one router: say so, whatever it was. */
  #moved([tags, shard, endpoint]) {
    const problem = [
      "moved",
      `it belongs to the shard ${shard}, and this client does not follow.`,
      "job_id",
      `Connect another client to ${endpoint}, or give it a job_id that ends with the name of the shard you are connected to.`,
    ];
    for (const tag of tags) {
      const flight = this.#flights.get(tag);
      if (flight) this.#answered(flight, REFUSED, problem);
      const asked = this.#asks.get(tag);
      this.#asks.delete(tag);
      asked?.settle([tag, -1, problem]);
    }
  }

  /** Say HELLO again: to a router that does not know us, or by a new socket. */
  greetAgain() {
    this.welcome = null;
    this.#helloAt = -Infinity;
  }

  /** Whether the router was not heard for a lease: the socket is to be made anew. */
  silent(now) {
    return this.welcome !== null && now - this.#heardAt > this.welcome.leaseMs;
  }

  /** Give up all that is under way. */
  fail(error) {
    for (const flight of this.#flights.values()) flight.handle._refused(error);
    this.#flights.clear();
  }

  // --- out

  outgoing(now) {
    if (this.welcome === null) {
      if (now - this.#helloAt < HELLO_AGAIN_MS) return [];
      this.#helloAt = now;
      return [["HELLO", VERSION, "client", this.#session, "", {}]];
    }
    const messages = this.#commands(this.#due(now), now);
    for (const asked of this.#asks.values()) {
      if (asked.at > now) continue;
      asked.at = now + ASK_AGAIN_MS;
      messages.push(asked.message);
    }
    if (now - this.#beatAt >= this.welcome.beatMs) {
      this.#beatAt = now;
      messages.push(["HB", this.#session, this.welcome.epoch, 0, 0, [], []]);
    }
    return messages;
  }

  wakeInMs(now) {
    if (this.welcome === null) return Math.max(0, this.#helloAt + HELLO_AGAIN_MS - now);
    const asks = [...this.#asks.values()].map((asked) => asked.at);
    const slots = [...this.#agenda.keys()].map((slot) => slot * 100);
    const next = Math.min(this.#beatAt + this.welcome.beatMs, ...asks, ...slots);
    return Math.max(0, next - now);
  }

  #plan(flight, at) {
    if (flight.at === at) return;
    flight.at = at;
    const slot = Math.ceil(at / 100);
    if (!this.#agenda.has(slot)) this.#agenda.set(slot, []);
    this.#agenda.get(slot).push(flight.tag);
  }

  /** Take what is due from the agenda. A flight may stand there several times; its `at` tells which holds. */
  #due(now) {
    const due = new Set();
    for (const [slot, tags] of this.#agenda) {
      if (slot * 100 > now) continue;
      this.#agenda.delete(slot);
      for (const tag of tags) {
        const flight = this.#flights.get(tag);
        if (flight && flight.at <= now) due.add(flight);
      }
    }
    return due;
  }

  #commands(due, now) {
    let [submit, queries, bytes, asked] = [[], [], 0, 0];
    const messages = [];
    const send = () => {
      if (submit.length) messages.push(["SUBMIT", submit]);
      if (queries.length) messages.push(["STATUS", queries]);
      [submit, queries, bytes] = [[], [], 0];
    };
    for (const flight of due) {
      if (flight.at > now) continue; // it went with its parcel
      if (flight.item === null) {
        if (flight.at > 0 && ++asked > MOST_RECHECKED) {
          this.#plan(flight, now + RECHECK_EVERY_MS);
          continue;
        }
        this.#plan(flight, now + UNANSWERED_MS);
        queries.push(flight.query);
      } else {
        // A workflow is taken whole, so it is sent whole.
        const group = flight.parcel ? flight.parcel.flights.filter((each) => each.item) : [flight];
        if (this.#tooLarge(group)) continue;
        for (const each of group) {
          this.#plan(each, now + UNANSWERED_MS);
          submit.push(each.item);
          bytes += each.item[4].length;
        }
      }
      if (submit.length + queries.length >= MOST_IN_MESSAGE || bytes >= MOST_BYTES_IN_MESSAGE) send();
    }
    send();
    return messages;
  }

  /** What is larger than the router takes is refused here: a frame of more than 64 MiB would end the connection. */
  #tooLarge(group) {
    const most = this.welcome.limits.data_bytes;
    const large = group.find((flight) => flight.item[4].length > most);
    if (!large) return false;
    const message = `the data has ${large.item[4].length} bytes; at most ${most} are allowed.`;
    const fix = "Send less, store it elsewhere and send a reference, or raise [limits] data_bytes.";
    for (const flight of group) {
      this.#flights.delete(flight.tag);
      flight.handle._refused(new ExesysError("too_large", message, { field: "data", fix }));
    }
    return true;
  }
}
