// The real system that these tests speak to, in EXESYS_HOME: its processes, its Redis, and a peer that says anything.

import { randomBytes } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { connect } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

export const HOME = process.env.EXESYS_HOME;
export const ENDPOINT = `ipc://${HOME}/run/bus`;
const DEADLINE_MS = 30_000;

/** Wait until something true comes, and return that. */
export async function until(condition, what, within_ms = DEADLINE_MS) {
  const deadline = performance.now() + within_ms;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (performance.now() > deadline) throw new Error(`not within ${within_ms} ms: ${what}`);
    await pause(10);
  }
}

/** Find the process of a program of the system, such as "router". */
export async function pidOf(program) {
  const wanted = program === "redis" ? [`${HOME}/data/redis`] : [`exesys.daemons.${program}`];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const [words, environ] = await Promise.all(
      ["cmdline", "environ"].map((file) => readFile(`/proc/${pid}/${file}`, "utf8").catch(() => "")),
    );
    const ours = environ.split("\0").includes(`EXESYS_HOME=${HOME}`);
    if (ours && words.split("\0").some((word) => wanted.includes(word))) return Number(pid);
  }
  throw new Error(`no ${program} runs in ${HOME}`);
}

/** Kill a program with -9; supervisord starts it again. */
export async function kill(program) {
  process.kill(await pidOf(program), "SIGKILL");
}

/** Ask the system's Redis one thing, in the database of its functions (1) or of jobs (0). */
export async function redis(database, ...words) {
  await stat(`${HOME}/run/redis`);
  const socket = connect(`${HOME}/run/redis`);
  try {
    const spelled = (parts) =>
      `*${parts.length}\r\n${parts.map((part) => `$${Buffer.byteLength(String(part))}\r\n${part}\r\n`).join("")}`;
    socket.write(spelled(["SELECT", database]) + spelled(words));
    let told = "";
    for await (const chunk of socket) {
      told += chunk;
      const answer = told.startsWith("+OK\r\n") ? reply(told.slice(5)) : undefined;
      if (answer !== undefined) return answer;
    }
    throw new Error("Redis hung up");
  } finally {
    socket.destroy();
  }
}

/** Read one reply of RESP2; undefined while it is not all there. */
function reply(text) {
  const lines = text.split("\r\n");
  if (lines.length < 2) return undefined;
  const [kind, rest] = [lines[0][0], lines[0].slice(1)];
  if (kind === "-") throw new Error(rest);
  if (kind === ":") return Number(rest);
  if (kind === "+" || rest === "-1") return rest === "-1" ? null : rest;
  if (kind === "$") return lines.length > 2 ? lines[1] : undefined;
  return lines.length > 2 * Number(rest) + 1
    ? lines
        .slice(1)
        .filter((_, at) => at % 2)
        .slice(0, Number(rest))
    : undefined;
}

/** A peer that says what it likes, and keeps what it hears, each answer by itself. */
export class Peer {
  constructor(endpoint = ENDPOINT) {
    this.session = randomBytes(8).toString("hex");
    this.heard = [];
    this.socket = new Dealer({ linger: 0 });
    this.socket.connect(endpoint);
    this.#read();
  }

  static async greeted(endpoint) {
    const peer = new Peer(endpoint);
    await peer.say("HELLO", 1, "client", peer.session, "", {});
    peer.welcome = await peer.next("WELCOME");
    const [, , epoch, heartbeat_s] = peer.welcome;
    peer.beating = setInterval(() => peer.say("HB", peer.session, epoch, 0, 0, [], []), 1000 * heartbeat_s);
    return peer;
  }

  async #read() {
    for await (const [frame] of this.socket) {
      const [kind, ...fields] = decode(new Uint8Array(frame));
      const answers = ["SUBMIT_ACK", "STATUS", "DONE"].includes(kind) ? fields[0] : [];
      if (kind === "HB_ACK") continue;
      if (answers.length) answers.forEach((answer) => this.heard.push([kind, ...answer]));
      else this.heard.push([kind, ...fields]);
    }
  }

  say(...message) {
    return this.socket.send(encode(message));
  }

  /** The next message of a kind; `fits` looks at its fields. Returns the fields. */
  async next(kind, fits = () => true, within_ms = DEADLINE_MS) {
    const at = () => this.heard.findIndex(([of, ...fields]) => of === kind && fits(fields));
    await until(() => at() >= 0, `${kind} comes; there came ${JSON.stringify(this.heard)}`, within_ms);
    return this.heard.splice(at(), 1)[0].slice(1);
  }

  close() {
    clearInterval(this.beating);
    this.socket.close();
  }
}
