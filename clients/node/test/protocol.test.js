// What docs/protocol.md says, said to a real router message by message: nothing here uses the client.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, test } from "node:test";
import { decode, encode } from "@msgpack/msgpack";
import { Subscriber } from "zeromq";
import { kill, Peer, pidOf, redis, until } from "./system.js";

let peer;
let lastTag = 0;
before(async () => (peer = await Peer.greeted()));
after(() => peer.close());

const item = (
  cmd,
  data,
  { job_id = randomUUID(), from = "client", to = "end_job", options = {}, notify = true, flow = 0 } = {},
) => [++lastTag, from, to, cmd, encode(data), job_id, options, notify, flow];

/** Wait for the answer to a tag in a message of this kind: tag, state, body. */
const answer = (kind, tag, fits = () => true) => peer.next(kind, ([of, state]) => of === tag && fits(state));

test("WELCOME says what a client must know", () => {
  const [version, session, epoch, heartbeat_s, misses, limits, endpoints, shard, shards] = peer.welcome;
  assert.deepEqual([version, session, misses, shard, shards], [1, peer.session, 5, "", {}]);
  assert.ok(epoch >= 1 && heartbeat_s > 0);
  assert.deepEqual(limits, { data_bytes: 1 << 20, depth: 100, log_bytes: 64 << 10 });
  for (const name of ["results", "events"]) assert.match(endpoints[name], new RegExp(`^ipc://.*\\.${name}$`));
});

test("SUBMIT, then DONE, then STATUS; the same again is answered at once", async () => {
  const sent = item("echo", { a: [1, "è"] });
  await peer.say("SUBMIT", [sent]);
  const [, state, body] = await answer("DONE", sent[0]);
  assert.deepEqual([state, decode(body)], [3, { EOJ: { a: [1, "è"] } }]);
  assert.deepEqual([...body.subarray(0, 5)], [0x81, 0xa3, 0x45, 0x4f, 0x4a]);
  await peer.say("STATUS", [[++lastTag, sent[5], "client", "end_job", false]]);
  assert.equal((await answer("STATUS", lastTag))[1], 3);
  await peer.say("SUBMIT", [[++lastTag, ...sent.slice(1)]]);
  assert.equal((await answer("SUBMIT_ACK", lastTag))[1], 3);
});

test("a long job is acknowledged, and done later", async () => {
  const sent = item("sleep", 0.3, { to: ["D", "E"] });
  await peer.say("SUBMIT", [sent]);
  assert.deepEqual((await answer("SUBMIT_ACK", sent[0])).slice(1), [0, null]);
  assert.deepEqual(decode((await answer("DONE", sent[0]))[2]), { EOJ: 0.3 });
});

test("a function that fails gives its error and how often it was tried", async () => {
  const sent = item("fail", "on purpose", { options: { retries: 1, backoff_s: 0.01 } });
  await peer.say("SUBMIT", [sent]);
  const [, state, [body, attempts]] = await answer("DONE", sent[0]);
  assert.deepEqual([state, attempts], [4, 2]);
  const { type, message, traceback } = decode(body);
  assert.deepEqual([type, message], ["ValueError", "on purpose"]);
  assert.ok(traceback.endsWith("ValueError: on purpose\n"));
});

test("refusals concern one item each, and say what to do", async () => {
  const job_id = randomUUID();
  const [unknown, bad, good, conflict] = [
    item("ecko", null),
    item("echo", 1, { from: "a:b" }),
    item("echo", 1, { job_id }),
    item("echo", 2, { job_id }),
  ];
  await peer.say("SUBMIT", [unknown, bad, good, conflict]);
  const refused = async (sent) => (await answer("SUBMIT_ACK", sent[0], (state) => state === -1))[2];
  const [code, message, field, fix] = await refused(unknown);
  assert.deepEqual([code, fix], ["unknown_cmd", "Did you mean `echo`?"]);
  assert.ok(message.length && typeof field === "string");
  assert.deepEqual(
    (await refused(bad)).filter((_, at) => at === 0 || at === 2),
    ["bad_field", "from"],
  );
  assert.deepEqual(
    (await refused(conflict)).filter((_, at) => at === 0 || at === 2),
    ["conflict", "job_id"],
  );
  assert.equal((await answer("DONE", good[0]))[1], 3);
});

test("a workflow is taken whole or not at all", async () => {
  const [job_id, lost] = [randomUUID(), randomUUID()];
  const flow = lastTag + 1;
  const steps = [
    item("add", [1, 2], { job_id, from: "A", to: "B", flow, notify: false }),
    item("echo", null, { job_id, from: "B", flow }),
  ];
  await peer.say("SUBMIT", steps);
  assert.deepEqual(decode((await answer("DONE", steps[1][0]))[2]), { EOJ: 3 });
  const wrong = [
    item("echo", 1, { job_id: lost, from: "A", to: "B", flow: flow + 2 }),
    item("echo", null, { job_id: lost, from: "B", to: "C", flow: flow + 2 }),
  ];
  await peer.say("SUBMIT", wrong);
  for (const sent of wrong) assert.equal((await answer("SUBMIT_ACK", sent[0]))[2][0], "bad_field");
  await peer.say("STATUS", [[++lastTag, lost, "A", "B", false]]);
  assert.equal((await answer("STATUS", lastTag))[2][0], "not_found");
});

for (const hex of ["c1", "a0", "90", "93a6", `92a6${Buffer.from("SUBMIT").toString("hex")}01`, "ff".repeat(64)]) {
  test(`bytes that are no message are told so: ${hex.slice(0, 16)}`, async () => {
    await peer.socket.send(Buffer.from(hex, "hex"));
    assert.equal((await peer.next("ERROR"))[0], "bad_message");
    const sent = item("echo", 1);
    await peer.say("SUBMIT", [sent]);
    assert.equal((await answer("DONE", sent[0]))[1], 3);
  });
}

for (const [code, ...message] of [
  ["bad_version", "HELLO", 99, "client", "0123456789abcdef", "", {}],
  ["bad_version", "HELLO", 2, "of", "another", "time"],
  ["bad_hello", "HELLO", 1, "clients", "0123456789abcdef", "", {}],
  ["bad_hello", "HELLO", 1, "client", "not hexadecimal!", "", {}],
  ["bad_hello", "HELLO", 1, "worker", "0123456789abcdef", "", {}],
  ["not_allowed", "STOP", "mail", "x"],
  ["not_allowed", "RESULT", "0123456789abcdef", []],
]) {
  test(`errors have codes: ${code} for ${JSON.stringify(message)}`, async () => {
    await peer.say(...message);
    const [told, sentence, , fix] = await peer.next("ERROR");
    assert.equal(told, code);
    assert.ok(sentence.length && typeof fix === "string");
  });
}

test("before HELLO nothing is taken", async () => {
  const stranger = new Peer();
  try {
    await stranger.say("SUBMIT", [item("echo", 1)]);
    assert.equal((await stranger.next("ERROR"))[0], "unknown_session");
  } finally {
    stranger.close();
  }
});

test("a SNAPSHOT has the parts asked for", async () => {
  await peer.say("SYNC", 7, ["workers", "figures", "functions", "no such part"]);
  const [, epoch, seq, parts] = await peer.next("SNAPSHOT", ([tag]) => tag === 7);
  assert.equal(epoch, peer.welcome[2]);
  assert.ok(seq >= 0);
  assert.deepEqual(Object.keys(parts).sort(), ["figures", "functions", "workers"]);
  assert.deepEqual(
    parts.workers.map((worker) => worker.queues),
    [["default"]],
  );
  assert.ok(parts.functions.functions.some((each) => each.name === "echo"));
});

test("a stop key set to 0 becomes an EVENT behind its topic, numbered like all others", async () => {
  const [, , epoch, , , , endpoints] = peer.welcome;
  const events = new Subscriber();
  events.connect(endpoints.events);
  events.subscribe("stop.");
  const heard = [];
  (async () => {
    for await (const [topic, frame] of events) heard.push([topic.toString(), ...decode(new Uint8Array(frame))]);
  })();
  const stop = async (uuid) => {
    await redis(0, "SET", `run:mail:${uuid}`, 1);
    await redis(0, "SET", `run:mail:${uuid}`, 0);
  };
  try {
    // Nothing tells when a subscription has reached the publisher: stop others until one is heard.
    await until(() => (heard.length ? true : stop(randomUUID())), "the first is heard");
    const uuid = randomUUID();
    await stop(uuid);
    const event = await until(() => heard.find(([topic]) => topic === `stop.mail.${uuid}`), "it is heard");
    assert.deepEqual(event.slice(1, 3), ["EVENT", epoch]);
    assert.deepEqual(event[4], ["mail", uuid]);
    const numbers = heard.map(([, , , seq]) => seq);
    assert.deepEqual(
      numbers,
      numbers.map((_, at) => numbers[0] + at),
    );
    await peer.say("SYNC", 8, ["stops"]);
    const [, , seq, { stops }] = await peer.next("SNAPSHOT", ([tag]) => tag === 8);
    assert.ok(seq >= event[3]);
    assert.deepEqual(stops.at(-1), ["mail", uuid]);
  } finally {
    events.close();
  }
});

test("BUSY while the store is away, and the same taken later", async () => {
  const pid = await pidOf("redis");
  const sent = item("echo", "patience");
  process.kill(pid, "SIGSTOP");
  try {
    await until(async () => {
      await peer.say("SUBMIT", [sent]);
      return peer.heard.some(([kind, tags]) => kind === "BUSY" && tags.includes(sent[0]));
    }, "BUSY comes");
    const [, reason, retry_s] = await peer.next("BUSY");
    assert.match(reason, /^store/);
    assert.ok(retry_s > 0);
  } finally {
    process.kill(pid, "SIGCONT");
  }
  await peer.say("SUBMIT", [sent]);
  assert.equal((await answer("DONE", sent[0]))[1], 3);
});

test("a router that was killed is another one: HELLO with the same session, and the epoch has risen", async () => {
  const slow = item("sleep", 0.5);
  await peer.say("SUBMIT", [slow]);
  await answer("SUBMIT_ACK", slow[0]);
  await kill("router");
  await peer.next("ERROR", ([code]) => code === "unknown_session");
  await peer.say("HELLO", 1, "client", peer.session, "", {});
  const [, session, epoch] = await peer.next("WELCOME");
  assert.equal(session, peer.session);
  assert.ok(epoch > peer.welcome[2]);
  await peer.say("STATUS", [[++lastTag, slow[5], "client", "end_job", true]]);
  let [, state, body] = await answer("STATUS", lastTag);
  if (state < 3) [, state, body] = await answer("DONE", lastTag); // else it had ended before it was asked for
  assert.deepEqual([state, decode(body)], [3, { EOJ: 0.5 }]);
});
