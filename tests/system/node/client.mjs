// A client of the ExeSys bus, written from docs/protocol.md: nothing here knows the Python code.
//
//     node client.mjs ipc:///path/to/run/bus
//
// reads one request per line from standard input, as JSON, and prints one line of JSON for each
// thing that happens. Requests:
//
//     {"do": "submit", "items": [{"cmd": "echo", "data": 1, "job_id": "a", …}]}
//     {"do": "status", "job_id": "a", "from": "client", "to": "end_job"}
//     {"do": "types"}     submit a value of every type that JSON lacks, and compare what comes back
//     {"do": "send", "message": ["SYNC", 1, ["stops"]]}     any message, as it stands
//     {"do": "sendHex", "hex": "c1"}                        any bytes

import { randomBytes, randomUUID } from "node:crypto";
import { EventEmitter } from "node:events";
import { isDeepStrictEqual } from "node:util";
import { createInterface } from "node:readline";
import { Dealer, Subscriber } from "zeromq";
import { decode, encode, ExtensionCodec } from "@msgpack/msgpack";

const VERSION = 1;
const HELLO_AGAIN_MS = 1000;
const RECHECK_MS = 5000;
const UNANSWERED_MS = 10000;
const TICK_MS = 20;

// --- data: msgpack with the extension types of the protocol ---------------

export class Uuid {
  constructor(text) {
    this.text = text;
  }
}

export class Decimal {
  constructor(text) {
    this.text = text;
  }
}

const text = new TextEncoder();
const untext = new TextDecoder();
const types = new ExtensionCodec();

function register(type, kind, toBytes, fromBytes) {
  types.register({ type, encode: (value) => (value instanceof kind ? toBytes(value) : null), decode: fromBytes });
}

register(1, Date, (value) => text.encode(value.toISOString()), (bytes) => new Date(untext.decode(bytes)));
register(
  2,
  Uuid,
  (value) => Uint8Array.from(Buffer.from(value.text.replaceAll("-", ""), "hex")),
  (bytes) => new Uuid(Buffer.from(bytes).toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-")),
);
register(3, Decimal, (value) => text.encode(value.text), (bytes) => new Decimal(untext.decode(bytes)));
register(4, Set, (value) => pack([...value]), (bytes) => new Set(unpack(bytes)));

export function pack(value) {
  return encode(value, { extensionCodec: types });
}

export function unpack(bytes) {
  return decode(bytes, { extensionCodec: types });
}

// --- the conversation -----------------------------------------------------

// Events: "welcome" (welcome), "answer" (tag, state, body, kind), "event" (topic, epoch, seq, body),
// "stop" (type, uuid), "busy" (tags, reason), "error" (code, message), "snapshot" (tag, parts).
export class Client extends EventEmitter {
  constructor(endpoint) {
    super();
    this.endpoint = endpoint;
    this.session = randomBytes(8).toString("hex"); // kept over reconnects: DONE finds us by it
    this.welcome = null;
    this.flights = new Map(); // tag -> what is under way
    this.stops = new Set();
    this.lastTag = 0;
    this.epoch = this.seq = 0;
    this.helloAt = this.beatAt = this.heardAt = -Infinity;
    this.connect();
    this.timer = setInterval(() => this.tick(Date.now()), TICK_MS);
  }

  connect() {
    this.front?.close();
    this.front = new Dealer({ linger: 1000 });
    this.front.connect(this.endpoint);
    this.outbox = Promise.resolve();
    this.read(this.front);
  }

  async read(socket) {
    for await (const frames of socket) {
      this.heardAt = Date.now();
      this.receive(decode(Uint8Array.from(frames[frames.length - 1])));
    }
  }

  send(message) {
    this.sendBytes(encode(message));
  }

  sendBytes(bytes) {
    const socket = this.front;
    this.outbox = this.outbox.then(() => socket.send(bytes)).catch(() => {}); // a closed socket: it will go out again
  }

  // --- calls

  submit(command) {
    const { from = "client", to = "end_job", cmd, data = null, job_id = randomUUID(), options = {} } = command;
    const tag = ++this.lastTag;
    // The data is packed once: sent again, it must be the same bytes.
    const item = [tag, from, to, cmd, pack(data), job_id, options, true, 0];
    this.flights.set(tag, { item, query: [tag, job_id, from, [to].flat().join(","), true], sendAt: 0 });
    return tag;
  }

  status(job_id, from = "client", to = "end_job") {
    const tag = ++this.lastTag;
    this.flights.set(tag, { query: [tag, job_id, from, to, false], sendAt: 0, once: true });
    return tag;
  }

  close() {
    clearInterval(this.timer);
    this.send(["BYE", this.session, "closed"]);
    return this.outbox.then(() => {
      this.front.close();
      this.events?.close();
    });
  }

  // --- out: what is due

  tick(now) {
    if (this.welcome === null) {
      if (now - this.helloAt >= HELLO_AGAIN_MS) {
        this.helloAt = now;
        this.send(["HELLO", VERSION, "client", this.session, "", {}]);
      }
      return;
    }
    const beatMs = 1000 * this.welcome.heartbeat_s;
    if (now - this.heardAt > beatMs * this.welcome.misses) {
      this.connect(); // silent for a lease: a new socket, and HELLO
      this.greetAgain();
      return;
    }
    if (now - this.beatAt >= beatMs) {
      this.beatAt = now;
      this.send(["HB", this.session, this.welcome.epoch, 0, 0, [], []]);
    }
    const due = [...this.flights.values()].filter((flight) => flight.sendAt <= now);
    for (const flight of due) {
      flight.sendAt = now + UNANSWERED_MS;
    }
    const items = due.filter((flight) => flight.item).map((flight) => flight.item);
    const queries = due.filter((flight) => !flight.item).map((flight) => flight.query);
    if (items.length) this.send(["SUBMIT", items]);
    if (queries.length) this.send(["STATUS", queries]);
  }

  greetAgain() {
    this.welcome = null;
    this.helloAt = -Infinity;
  }

  // --- in

  receive([kind, ...fields]) {
    switch (kind) {
      case "WELCOME":
        return this.greeted(fields);
      case "SUBMIT_ACK":
      case "STATUS":
      case "DONE":
        return fields[0].forEach(([tag, state, body]) => this.answered(tag, state, body, kind));
      case "BUSY":
        return this.busy(fields);
      case "HB_ACK":
        return fields[3].forEach(([type, uuid]) => this.stopped(type, uuid));
      case "SNAPSHOT":
        (fields[3].stops ?? []).forEach(([type, uuid]) => this.stopped(type, uuid));
        return this.emit("snapshot", fields[0], fields[3]);
      case "BYE":
        return this.greetAgain();
      case "ERROR":
        if (fields[0] === "unknown_session") this.greetAgain();
        return this.emit("refused", fields[0], fields[1]);
    }
  }

  greeted([version, session, epoch, heartbeat_s, misses, limits, endpoints]) {
    this.welcome = { version, session, epoch, heartbeat_s, misses, limits, endpoints };
    this.beatAt = -Infinity;
    // Perhaps a new router: what is not ended is sent, or asked for, again.
    for (const flight of this.flights.values()) flight.sendAt = 0;
    this.listen(endpoints.events, epoch);
    this.emit("welcome", this.welcome);
  }

  answered(tag, state, body, kind) {
    const flight = this.flights.get(tag);
    if (flight === undefined) return; // an answer may come twice
    if (state === -1 || state >= 3 || flight.once) {
      this.flights.delete(tag);
    } else {
      delete flight.item; // the router has it: from now on we only ask
      flight.sendAt = Date.now() + RECHECK_MS; // in case DONE is lost
    }
    this.emit("answer", tag, state, body, kind);
  }

  busy([tags, reason, retry_s]) {
    for (const tag of tags) {
      const flight = this.flights.get(tag);
      if (flight) flight.sendAt = Date.now() + 1000 * retry_s;
    }
    this.emit("busy", tags, reason);
  }

  // --- events

  listen(endpoint, epoch) {
    if (this.eventsAt !== endpoint) {
      this.events?.close();
      this.events = new Subscriber();
      this.events.connect(endpoint);
      this.events.subscribe("stop.", "ctl.", "ev.");
      this.eventsAt = endpoint;
      this.follow(this.events);
    }
    if (this.epoch !== epoch) {
      [this.epoch, this.seq] = [epoch, 0];
      this.send(["SYNC", 0, ["stops"]]);
    }
  }

  async follow(socket) {
    for await (const [topic, frame] of socket) {
      const [, epoch, seq, body] = decode(Uint8Array.from(frame));
      if (epoch === this.epoch && seq !== this.seq + 1) this.send(["SYNC", 0, ["stops"]]); // a gap
      [this.epoch, this.seq] = [epoch, seq];
      const name = untext.decode(topic);
      this.emit("event", name, epoch, seq, body);
      if (name.startsWith("stop.")) this.stopped(...body);
    }
  }

  stopped(type, uuid) {
    const name = `${type}:${uuid}`;
    if (this.stops.has(name)) return;
    this.stops.add(name);
    this.emit("stop", type, uuid);
  }
}

// --- standard input and output --------------------------------------------

function show(what, fields) {
  process.stdout.write(JSON.stringify({ what, ...fields }) + "\n");
}

function opened(state, body) {
  if (state === 3) return { result: unpack(body) };
  if (state === 4) return { error: unpack(body[0]), attempts: body[1] };
  if (state === -1) return { code: body[0], message: body[1], field: body[2], fix: body[3] };
  return {};
}

function main(endpoint) {
  const client = new Client(endpoint);
  const compared = new Map(); // tag -> what must come back
  client.on("welcome", (welcome) => show("welcome", { session: client.session, ...welcome }));
  client.on("busy", (tags, reason) => show("busy", { tags, reason }));
  client.on("refused", (code, message) => show("error", { code, message }));
  client.on("event", (topic, epoch, seq, body) => show("event", { topic, epoch, seq, body }));
  client.on("stop", (type, uuid) => show("stop", { type, uuid }));
  client.on("snapshot", (tag, parts) => show("snapshot", { tag, parts }));
  client.on("answer", (tag, state, body, kind) => {
    const told = opened(state, body);
    if (compared.has(tag) && told.result) told.equal = isDeepStrictEqual(told.result.EOJ, compared.get(tag));
    show("answer", { kind, tag, state, ...told });
  });
  const requests = {
    submit: ({ items }) => show("tags", { tags: items.map((item) => client.submit(item)) }),
    status: ({ job_id, from, to }) => show("tags", { tags: [client.status(job_id, from, to)] }),
    send: ({ message }) => client.send(message),
    sendHex: ({ hex }) => client.sendBytes(Buffer.from(hex, "hex")),
    types: () => {
      const value = {
        bytes: Uint8Array.of(0, 255),
        date: new Date("2026-01-31T12:00:00.5Z"),
        uuid: new Uuid(randomUUID()),
        decimal: new Decimal("0.10"),
        set: new Set([1, "two"]),
        nested: [null, true, -1, 2 ** 40, 0.5, "è", { "": [] }],
      };
      const tag = client.submit({ cmd: "echo", data: value });
      compared.set(tag, value);
      show("tags", { tags: [tag] });
    },
  };
  createInterface({ input: process.stdin })
    .on("line", (line) => {
      const request = JSON.parse(line);
      requests[request.do](request);
    })
    .on("close", () => client.close());
}

main(process.argv[2]);
