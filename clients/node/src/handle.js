// What a caller holds of a command that was sent: its end, as a promise that is made when it is asked for.

import { unpack } from "./codec.js";
import { ExesysError, JobError } from "./errors.js";

export const STATES = ["start", "standby", "processing", "data_available", "error"];
const DATA_AVAILABLE = 3,
  ERROR = 4;
const FOLLOWED = "PredecessorFailed";

/**
 * Wait for a promise, but not longer than the caller likes.
 * @template T
 * @param {Promise<T>} promise
 * @param {{timeout_ms?: number, signal?: AbortSignal}} options
 * @param {() => Error} late makes the error of a timeout
 * @returns {Promise<T>}
 */
export function within(promise, { timeout_ms, signal }, late) {
  if (signal?.aborted) return Promise.reject(signal.reason);
  if (timeout_ms === undefined && !signal) return promise;
  return new Promise((resolve, reject) => {
    const timer = timeout_ms === undefined ? undefined : setTimeout(() => end(reject, late()), timeout_ms);
    const abort = () => end(reject, signal?.reason);
    signal?.addEventListener("abort", abort, { once: true });
    function end(settle, value) {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      settle(value);
    }
    promise.then(
      (value) => end(resolve, value),
      (error) => end(reject, error),
    );
  });
}

/** A command on its way. */
export class Handle {
  #client;
  #state = null;
  #body = null;
  #error = null;
  #waiting = [];

  constructor(client, { job_id, from, to, cmd = "" }) {
    this.#client = client;
    this.job_id = job_id;
    this.from = from;
    this.to = to;
    this.cmd = cmd;
  }

  /** The name of the state last heard of; null until the router has taken the command. */
  get state() {
    return this.#state === null ? null : STATES[this.#state];
  }

  /** Whether it ended: with a result, in error, or refused. */
  get done() {
    return this.#error !== null || this.#state === DATA_AVAILABLE || this.#state === ERROR;
  }

  /** What it ended with in error; null when it went well, or goes on. */
  get error() {
    if (this.#error || this.#state !== ERROR) return this.#error;
    const [packed, attempts] = this.#body;
    const told = packed.length ? unpack(packed) : {};
    const { type = "Error", message = "", traceback = "" } = told;
    return new JobError(type, message, attempts, { traceback, job_id: this.job_id });
  }

  /**
   * Wait until the router has stored it.
   * @returns {Promise<string>} its state
   */
  async accepted(options = {}) {
    await this.#wait(() => this.#state !== null || this.#error !== null, options, "was not acknowledged");
    if (this.#error) throw this.#error;
    return STATES[this.#state];
  }

  /** Wait for its end, whatever it is. */
  async ended(options = {}) {
    await this.#wait(() => this.done, options, "has not ended");
  }

  /**
   * Wait for its end.
   * @param {{timeout_ms?: number, signal?: AbortSignal}} [options] waiting ends then; the job goes on
   * @returns {Promise<any>} the value under EOJ
   * @throws {JobError} when the function failed
   * @throws {ExesysError} when the command was refused, or `timeout_ms` is over (code `result_timeout`)
   */
  async result(options = {}) {
    await this.ended(options);
    const error = this.error;
    if (error) throw error;
    return unpack(this.#body).EOJ;
  }

  /** Cancel the job, all its steps. @returns {Promise<boolean>} whether something of it had not ended yet */
  async cancel() {
    return (await this.#client.cancel(this.job_id)) > 0;
  }

  #wait(condition, options, what) {
    if (condition()) return Promise.resolve();
    const waiter = { condition, resolve: () => {} };
    const promise = new Promise((resolve) => (waiter.resolve = resolve));
    this.#waiting.push(waiter);
    const late = () => {
      const fix =
        this.#state === null ? "The router has not answered for it: is the system up?" : "It goes on: ask again.";
      return new ExesysError("result_timeout", `job ${this.job_id} ${what} within ${options.timeout_ms} ms.`, { fix });
    };
    return within(promise, options, late).finally(() => {
      this.#waiting = this.#waiting.filter((each) => each !== waiter);
    });
  }

  /** For the desk: the router told a state. */
  _heard(state, body) {
    this.#state = state;
    this.#body = body;
    this.#wake();
  }

  /** For the desk: it was refused, or given up. */
  _refused(error) {
    this.#error = error;
    this.#wake();
  }

  #wake() {
    const [ready, waiting] = [[], []];
    for (const each of this.#waiting) (each.condition() ? ready : waiting).push(each);
    this.#waiting = waiting;
    for (const each of ready) each.resolve();
  }
}

/** A workflow on its way: the job as a whole. */
export class Job {
  #client;
  #ends;

  /** @param {Handle[]} steps in the order sent */
  constructor(client, steps) {
    this.#client = client;
    this.job_id = steps[0].job_id;
    this.steps = steps;
    this.#ends = steps.filter((step) => [step.to].flat().includes("end_job"));
  }

  /** Whether every step that ends the job has ended. */
  get done() {
    return this.#ends.every((end) => end.done);
  }

  /** Wait until the router has stored it. */
  async accepted(options = {}) {
    await Promise.all(this.steps.map((step) => step.accepted(options)));
  }

  /**
   * Wait for the end.
   * @param {{timeout_ms?: number, signal?: AbortSignal}} [options]
   * @returns {Promise<any>} the value of the only step that goes to end_job, or an object of several by their `from`
   * @throws {JobError} of the step that failed, not of those that failed with it
   * @throws {ExesysError} when the workflow was refused, or `timeout_ms` is over
   */
  async result(options = {}) {
    await Promise.all(this.#ends.map((end) => end.ended(options)));
    const failed = this.#ends.find((end) => end.error);
    if (failed) throw await this.#cause(failed.error);
    const values = await Promise.all(this.#ends.map((end) => end.result()));
    return values.length === 1 ? values[0] : Object.fromEntries(values.map((value, at) => [this.#name(at), value]));
  }

  /** Cancel what has not ended. @returns {Promise<boolean>} whether something had not */
  cancel() {
    return this.steps[0].cancel();
  }

  #name(at) {
    const { from, to } = this.#ends[at];
    const alone = this.#ends.filter((end) => end.from === from).length === 1;
    return alone ? from : `${from}>${[to].flat().join(",")}`;
  }

  async #cause(error) {
    if (!(error instanceof JobError) || error.type !== FOLLOWED) return error;
    const asked = this.steps.map((step) => this.#client._ask(step));
    await Promise.allSettled(asked.map((step) => step.accepted({ timeout_ms: 10_000 })));
    return asked.map((step) => step.error).find((each) => each instanceof JobError && each.type !== FOLLOWED) ?? error;
  }
}
