// The sockets and the clock around the desk: sends what is due, takes what comes, and wakes in time.

import { Dealer, Subscriber } from "zeromq";
import { frame, unframe } from "./codec.js";
import { beside } from "./find.js";

const MAX_FRAME_BYTES = 64 << 20;
const LINGER_MS = 1000;
// `immediate`: nothing is queued for a router that is away, so a send waits until it is back.
const OPTIONS = {
  linger: LINGER_MS,
  maxMessageSize: MAX_FRAME_BYTES,
  reconnectInterval: 20,
  reconnectMaxInterval: 500,
  heartbeatInterval: 5000,
  heartbeatTimeout: 30_000,
};

export class Connection {
  #endpoint;
  #keys;
  #desk;
  #onRefused;
  #front;
  #events = null;
  #eventsAt = "";
  #outbox = [];
  #sending = false;
  #timer;
  #soon = false;
  #closed = false;

  /** `onRefused` is called when the router does not let our key in. */
  constructor(endpoint, keys, desk, onRefused) {
    this.#endpoint = endpoint;
    this.#keys = keys;
    this.#desk = desk;
    this.#onRefused = onRefused;
    this.#connect();
    this.wake();
  }

  /** Something is to be sent: what is laid on the desk until this task ends goes out together. */
  wake() {
    if (this.#soon || this.#closed) return;
    this.#soon = true;
    queueMicrotask(() => {
      this.#soon = false;
      this.#pass();
    });
  }

  /** Listen to stops, at the endpoint that WELCOME names. */
  listen(endpoint) {
    if (this.#eventsAt === endpoint) return;
    this.#events?.close();
    this.#events = new Subscriber({ ...OPTIONS, ...this.#curve() });
    this.#events.connect(beside(this.#endpoint, endpoint));
    this.#events.subscribe("stop.");
    this.#eventsAt = endpoint;
    this.#read(this.#events);
  }

  /** Say goodbye and close. */
  async close() {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    if (this.#desk.welcome && !this.#sending) await this.#front.send(frame(["BYE", this.#desk.session, "closed"]));
    this.#front.close();
    this.#events?.close();
  }

  #curve() {
    if (!this.#keys) return {};
    return { curveServerKey: this.#keys.server, curvePublicKey: this.#keys.public, curveSecretKey: this.#keys.secret };
  }

  #connect() {
    this.#front?.close();
    this.#front = new Dealer({ ...OPTIONS, ...this.#curve(), immediate: true });
    this.#front.events.on("handshake:error:auth", () => this.#onRefused());
    this.#front.connect(this.#endpoint);
    this.#outbox = [];
    this.#sending = false;
    this.#read(this.#front);
  }

  async #read(socket) {
    for await (const frames of socket) {
      const message = unframe(frames[frames.length - 1]);
      if (this.#closed) return;
      try {
        if (message) this.#desk.receive(message, performance.now());
      } catch (error) {
        // What is no message tells nothing: what it answered will be asked again.
        if (!(error instanceof TypeError)) throw error;
      }
      this.wake();
    }
  }

  #pass() {
    if (this.#closed) return;
    const now = performance.now();
    if (this.#desk.silent(now)) {
      this.#connect();
      this.#desk.greetAgain();
    }
    if (!this.#sending) {
      this.#outbox = this.#desk.outgoing(now).map(frame);
      if (this.#outbox.length) this.#pump(this.#front);
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#pass(), Math.max(1, Math.min(this.#desk.wakeInMs(now), 1000)));
  }

  async #pump(socket) {
    this.#sending = true;
    try {
      while (this.#outbox.length) await socket.send(this.#outbox.shift());
    } catch (error) {
      if (!socket.closed) throw error;
    }
    if (socket === this.#front) {
      this.#sending = false;
      this.wake();
    }
  }
}
