// The client: what a program calls. What is under way is on the desk, the sockets are in the connection.

import { randomBytes, randomUUID } from "node:crypto";
import { pack } from "./codec.js";
import { Connection } from "./connection.js";
import { Desk } from "./desk.js";
import { ExesysError, refusal } from "./errors.js";
import { locate } from "./find.js";
import { Handle, Job, STATES, within } from "./handle.js";
import { Listener, Subscription } from "./stops.js";

const NAME = /^[A-Za-z0-9_.-]{1,128}$/;
const ANSWER_MS = 10_000,
  CLOSE_MS = 5000,
  STORE_AWAY_MS = 250;
const OPTIONS = new Set([
  ...["queue", "priority", "delay_s", "at", "timeout_s", "retries", "backoff_s", "key", "key_limit", "result_ttl_s"],
  ...["notify", "traceparent"],
]);

/** A connection to the router; make one and keep it. */
export class Client {
  #desk;
  #connection;
  #listeners = new Set();
  #greeted;
  #refusal = null; // why the router does not take us at all

  /**
   * Connect to a system, and wait until its router has greeted us.
   * @param {{endpoint?: string, key?: string, home?: string, timeout_ms?: number, signal?: AbortSignal}} [options]
   *   `endpoint` of the bus and, for another host, `key`, the path of a key file; or `home`, a system's directory. Else
   *   EXESYS_BUS_ENDPOINT and EXESYS_BUS_KEY, EXESYS_HOME, or `var` in this directory are taken.
   * @returns {Promise<Client>}
   * @throws {ExesysError} `not_found`, `bad_config`, `unauthorized`, `bad_version`, or `unavailable`: nobody answered within
   *   `timeout_ms`, 10 s if not given
   */
  static async connect(options = {}) {
    const { endpoint, keys } = await locate(options);
    const client = new Client(endpoint, keys);
    const timeout_ms = options.timeout_ms ?? ANSWER_MS;
    const fix = "Is the system up? See `bin/exesys status`.";
    const late = () =>
      new ExesysError("unavailable", `no router answers at ${endpoint} within ${timeout_ms} ms.`, { fix });
    try {
      await within(client.#greeted.promise, { timeout_ms, signal: options.signal }, late);
    } catch (error) {
      await client.#connection.close();
      throw error;
    }
    return client;
  }

  constructor(endpoint, keys) {
    this.#greeted = Promise.withResolvers?.() ?? withResolvers();
    this.#greeted.promise.catch(() => {}); // it is told to whoever waits for it
    this.#desk = new Desk(randomBytes(8).toString("hex"), (kind, fields) => this.#event(kind, fields));
    this.#connection = new Connection(endpoint, keys, this.#desk, () => {
      const fix = "Make a key with `bin/exesys keys new`, where the router runs.";
      this.#refused(
        new ExesysError("unauthorized", `the router at ${endpoint} does not let this key in.`, { field: "key", fix }),
      );
    });
  }

  // --- commands

  /**
   * Send one command.
   * @param {string} cmd the function's name
   * @param {unknown} [data] see the README for what can be sent
   * @param {import("../index.d.ts").SubmitOptions} [options] those of REST, beside `job_id`, `from`, `to` and `standby`
   * @returns {Handle} at once; what the router refuses is told by its promises
   * @throws {ExesysError} `bad_field` for what can be seen here
   */
  submit(cmd, data = null, options = {}) {
    const { standby = false, ...command } = options;
    const [handle, item] = this.#built({ ...command, cmd, data });
    this.#lay(() => this.#desk.put(handle, item, true, standby));
    return handle;
  }

  /** Send the same command for each item of `data`. @returns {Handle[]} in their order */
  submitMany(cmd, data, options = {}) {
    return Array.from(data, (item) => this.submit(cmd, item, options));
  }

  /** Send one command and wait for its value; `timeout_ms` and `signal` end the wait. */
  async run(cmd, data = null, { timeout_ms, signal, ...options } = {}) {
    return this.submit(cmd, data, options).result({ timeout_ms, signal });
  }

  /**
   * Send a workflow: all its steps are stored, or none.
   * @param {import("../index.d.ts").Step[]} steps commands as REST takes them, `{from, to, cmd, data, …}`
   * @param {string} [job_id]
   * @returns {Job} at once; that the router refuses it as a graph is told by its promises
   * @throws {ExesysError} `bad_field` for what can be seen here
   */
  workflow(steps, job_id = steps.find((step) => step.job_id)?.job_id ?? randomUUID()) {
    const built = steps.map((step) => this.#built({ ...step, job_id }));
    const handles = built.map(([handle]) => handle);
    const told = handles.map((handle) => [handle.to].flat().includes("end_job"));
    if (!told.includes(true)) {
      const fix = "Send at least one step that does.";
      throw new ExesysError("bad_field", "no step of the workflow goes to end_job.", { field: "to", fix });
    }
    this.#lay(() =>
      this.#desk.putWorkflow(
        handles,
        built.map(([, item]) => item),
        told,
      ),
    );
    return new Job(this, handles);
  }

  /** Return a handle of a step sent earlier, by anyone. One that is not there is refused with `not_found`. */
  follow(job_id, { from = "client", to = "end_job" } = {}) {
    return this._ask({ job_id, from, to }, true);
  }

  /** Ask how a step stands: `{status, state}` and, once ended, `result` or `error`. */
  async status(job_id, { from = "client", to = "end_job", ...options } = {}) {
    const handle = this._ask({ job_id, from, to });
    const state = await handle.accepted({ timeout_ms: ANSWER_MS, ...options });
    const told = { status: STATES.indexOf(state), state };
    const error = handle.error;
    if (error) told.error = { type: error.type, message: error.message, attempts: error.attempts };
    else if (handle.done) told.result = { EOJ: await handle.result() };
    return told;
  }

  /** Cancel what has not ended of a job. @returns {Promise<number>} how many steps that was */
  cancel(job_id) {
    return this.#change("cancel", name(job_id, "job_id"));
  }

  /** Run again what failed of a job, and what depended on it. @returns {Promise<number>} how many steps that is */
  retry(job_id) {
    return this.#change("retry", name(job_id, "job_id"));
  }

  /** Stop a runner, `type:uuid`, or all of a type. @returns {Promise<number>} how many that is news for */
  stopRunner(runner) {
    return this.#change("stop", runner);
  }

  // --- what happens

  /**
   * Hear of runners that are to stop: `for await (const { type, uuid } of client.stops("mail"))`. First come those that
   * the router knows already. None is missed, whatever is lost on the way, but one may come twice, and after a
   * restart of the router an old one again. A stop of all of a type has the uuid "".
   * @param {string} [type] of these alone
   * @param {string} [uuid] of this one alone
   * @returns {AsyncIterableIterator<{type: string, uuid: string}>} until it is left, or the client is closed
   */
  stops(type, uuid) {
    const listener = new Listener(() => this.#listeners.delete(heard));
    const wanted = (of, one) => (!type || of === type) && (!uuid || !one || one === uuid);
    const give = (of, one) => wanted(of, one) && listener.push({ type: of, uuid: one });
    const heard = { listener, subscription: new Subscription(give, () => this.#sync(heard.subscription)) };
    this.#listeners.add(heard);
    if (this.#desk.welcome) this.#listen(this.#desk.welcome, heard);
    return listener;
  }

  /** Ask the router for parts of a SNAPSHOT, such as "workers" and "functions". */
  async snapshot(...parts) {
    const [, , , told] = await this.#asked((tag) => ["SYNC", tag, parts], ANSWER_MS);
    return told;
  }

  /**
   * Wait until the router has taken what was sent, and say goodbye. What was taken goes on.
   * @throws {ExesysError} `unavailable` when commands were not taken within `timeout_ms`, 5 s: those may be lost
   */
  async close({ timeout_ms = CLOSE_MS } = {}) {
    const until = performance.now() + timeout_ms;
    while (this.#desk.unanswered && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 5));
    const left = this.#desk.unanswered;
    const fix = "Is the system up? Send them again.";
    this.#refusal = new ExesysError("unavailable", "this client is closed.");
    this.#desk.fail(
      left
        ? new ExesysError("unavailable", "the client was closed before the router took it.", { fix })
        : this.#refusal,
    );
    for (const { listener } of this.#listeners) listener.end();
    await this.#connection.close();
    if (left) throw new ExesysError("unavailable", `${left} commands were not taken by the router.`, { fix });
  }

  // --- within

  /** For Job: a handle of a step that was sent, which tells its state once, or with `notify` until its end. */
  _ask(step, notify = false) {
    const handle = new Handle(this, step);
    this.#lay(() => this.#desk.putQuery(handle, notify));
    return handle;
  }

  #lay(put) {
    if (this.#refusal) throw this.#refusal;
    put();
    this.#connection.wake();
  }

  #built({ cmd, data = null, job_id = randomUUID(), from = "client", to = "end_job", ...options }) {
    const target = Array.isArray(to) ? to.map((each) => name(each, "to")) : name(to, "to");
    const handle = new Handle(this, {
      job_id: name(job_id, "job_id"),
      from: name(from, "from"),
      to: target,
      cmd: name(cmd, "cmd"),
    });
    // The data is packed once: sent again, it must be the same bytes.
    return [handle, [from, target, cmd, pack(data), job_id, checked(options)]];
  }

  #event(kind, fields) {
    switch (kind) {
      case "WELCOME":
        this.#refusal = null;
        this.#greeted.resolve();
        for (const heard of this.#listeners) this.#listen(fields, heard);
        break;
      case "HB_ACK": {
        const [, epoch, seq, stops] = fields;
        for (const { subscription } of this.#listeners) subscription.acknowledged(epoch, seq, stops);
        break;
      }
      case "EVENT":
        for (const { subscription } of this.#listeners) subscription.event(...fields);
        break;
      case "ERROR":
        if (fields[0] === "bad_version") this.#refused(refusal(fields));
    }
  }

  #refused(error) {
    this.#refusal = error;
    this.#greeted.reject(error);
    this.#desk.fail(error);
  }

  #listen(welcome, { subscription }) {
    this.#connection.listen(welcome.endpoints.events);
    subscription.welcomed(welcome.epoch);
  }

  #sync(subscription) {
    this.#desk.ask(
      (tag) => ["SYNC", tag, ["stops"]],
      ([, epoch, seq, parts]) => subscription.snapshot(epoch, seq, parts.stops ?? []),
    );
    this.#connection.wake();
  }

  async #change(what, of) {
    const until = performance.now() + ANSWER_MS;
    for (;;) {
      const [, steps, problem] = await this.#asked((tag) => ["CHANGE", tag, what, of], until - performance.now());
      if (!problem?.length) return steps;
      const error = refusal(problem);
      if (error.code !== "unavailable" || performance.now() + STORE_AWAY_MS > until) throw error;
      await new Promise((resolve) => setTimeout(resolve, STORE_AWAY_MS));
    }
  }

  #asked(make, timeout_ms) {
    if (this.#refusal) return Promise.reject(this.#refusal);
    let tag = 0;
    const answer = new Promise((resolve) => (tag = this.#desk.ask(make, resolve)));
    this.#connection.wake();
    const late = () => {
      this.#desk.forget(tag);
      return new ExesysError("unavailable", "the router does not answer.", { fix: "See `bin/exesys status`." });
    };
    return within(answer, { timeout_ms }, late);
  }
}

/** A name that the router would not understand would cost all that goes with it: it is refused here. */
function name(value, field) {
  if (typeof value === "string" && NAME.test(value)) return value;
  const shown = typeof value === "string" ? JSON.stringify(value.slice(0, 60)) : `a ${typeof value}`;
  const fix = "Use 1 to 128 of the characters A-Z a-z 0-9 _ . -";
  throw new ExesysError("bad_field", `\`${field}\` is ${shown}.`, { field, fix });
}

function checked(options) {
  const given = {};
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined) continue;
    const known = OPTIONS.has(key);
    const fix = known ? "Give a number or a text." : `Known: job_id, from, to, standby, ${[...OPTIONS].join(", ")}.`;
    const sent = value instanceof Date ? value.toISOString() : value;
    const fits = typeof sent === "number" || (typeof sent === "string" && !/[\ud800-\udfff]/u.test(sent));
    if (!known) throw new ExesysError("bad_field", `the option \`${key}\` is unknown.`, { field: key, fix });
    if (!fits) throw new ExesysError("bad_field", `the option \`${key}\` is a ${typeof value}.`, { field: key, fix });
    given[key] = sent;
  }
  return given;
}

function withResolvers() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}
