// The client against a real system, of which some tests kill or stop a part.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";
import { Client, Decimal, ExesysError, JobError, LocalTime, UUID } from "exesys";
import { Router } from "zeromq";
import { decode, encode } from "@msgpack/msgpack";
import { ENDPOINT, HOME, kill, pidOf, redis, until } from "./system.js";

const refused =
  (code, field = "") =>
  (error) =>
    error instanceof ExesysError &&
    error.code === code &&
    (!field || error.field === field) &&
    error.message.length > 0;

/** Test with a client of its own, which is closed. */
function tested(what, body) {
  test(what, async (t) => {
    const client = await Client.connect();
    t.after(() => client.close().catch(() => {}));
    await body(client);
  });
}

// --- commands

tested("a command, its handle and its result", async (client) => {
  const handle = client.submit("echo", { a: [1, "è"] }, { job_id: `node-${randomUUID()}`, priority: 9, retries: 1 });
  assert.equal(handle.state, null);
  assert.deepEqual(await handle.result(), { a: [1, "è"] });
  assert.deepEqual([handle.state, handle.done, handle.error], ["data_available", true, null]);
  const { job_id } = handle;
  assert.deepEqual(await client.status(job_id), {
    status: 3,
    state: "data_available",
    result: { EOJ: { a: [1, "è"] } },
  });
  assert.deepEqual(await client.follow(job_id).result(), { a: [1, "è"] });
  assert.deepEqual(await client.submit("echo", { a: [1, "è"] }, { job_id }).result(), { a: [1, "è"] });
});

tested("many at once, in their order", async (client) => {
  const handles = client.submitMany(
    "add",
    Array.from({ length: 2500 }, (_, number) => [number, 1]),
  );
  assert.deepEqual(
    await Promise.all(handles.map((handle) => handle.result())),
    Array.from({ length: 2500 }, (_, number) => number + 1),
  );
});

tested("a wait ends by its time or its signal, and the job goes on", async (client) => {
  const handle = client.submit("sleep", 0.6);
  await assert.rejects(handle.result({ timeout_ms: 50 }), refused("result_timeout"));
  const leaver = new AbortController();
  const left = handle.result({ signal: leaver.signal });
  leaver.abort(new Error("I leave"));
  await assert.rejects(left, /I leave/);
  await assert.rejects(handle.result({ signal: AbortSignal.abort() }), { name: "AbortError" });
  assert.equal(await handle.result({ timeout_ms: 30_000, signal: new AbortController().signal }), 0.6);
});

tested("a function that fails", async (client) => {
  const handle = client.submit("fail", "on purpose", { retries: 1, backoff_s: 0.01 });
  await assert.rejects(handle.result(), (error) => {
    assert.ok(error instanceof JobError && error instanceof ExesysError);
    assert.deepEqual(
      [error.type, error.message, error.attempts, error.job_id],
      ["ValueError", "on purpose", 2, handle.job_id],
    );
    assert.match(error.traceback, /ValueError: on purpose\n$/);
    return true;
  });
  assert.equal((await client.status(handle.job_id)).error.type, "ValueError");
});

tested("what the router refuses", async (client) => {
  const job_id = randomUUID();
  await client.submit("echo", 1, { job_id }).result();
  await assert.rejects(client.submit("echo", 2, { job_id }).result(), refused("conflict", "job_id"));
  await assert.rejects(
    client.run("ecko"),
    (error) => refused("unknown_cmd")(error) && error.fix === "Did you mean `echo`?",
  );
  await assert.rejects(client.run("echo", 1, { priority: 11 }), refused("bad_field", "priority"));
  await assert.rejects(client.status(randomUUID()), refused("not_found"));
  await assert.rejects(client.cancel(randomUUID()), refused("not_found"));
  let deep = 1;
  for (let level = 0; level < 150; level++) deep = [deep];
  await assert.rejects(client.run("echo", deep), refused("bad_field", "data"));
  const large = client.submit("echo", "x".repeat(2 << 20));
  await assert.rejects(large.result(), refused("too_large", "data"));
  const frame = client.submit("echo", new Uint8Array(80 << 20)); // more than any frame may have
  await assert.rejects(frame.result(), refused("too_large", "data"));
  assert.equal(await client.run("echo", "and the connection lives"), "and the connection lives");
});

tested("what is refused before it is sent", async (client) => {
  const circle = {};
  circle.own = circle;
  for (const [field, cmd, data, options] of [
    ["cmd", "no name", 1],
    ["cmd", undefined, 1],
    ["job_id", "echo", 1, { job_id: "a:b" }],
    ["to", "echo", 1, { to: ["A", ""] }],
    ["priorty", "echo", 1, { priorty: 1 }],
    ["retries", "echo", 1, { retries: () => 1 }],
    ["data", "echo", () => 1],
    ["data", "echo", new (class Thing {})()],
    ["data", "echo", new Float32Array(1)],
    ["data", "echo", new Map([[1, 2]])],
    ["data", "echo", 2n ** 64n],
    ["data", "echo", "\ud800"],
    ["data", "echo", new Date(NaN)],
    ["data", "echo", new Set([{}])],
    ["data", "echo", circle],
  ]) {
    assert.throws(() => client.submit(cmd, data, options), refused("bad_field", field), `${field} ${String(data)}`);
  }
});

// --- data

tested("what JSON lacks comes back as it was", async (client) => {
  const value = {
    bytes: Uint8Array.of(0, 255),
    date: new Date("2026-01-31T12:00:00.5Z"),
    local: new LocalTime("2026-01-31T12:00:00"),
    uuid: new UUID(randomUUID()),
    decimal: new Decimal("0.10"),
    set: new Set([1, "two", 2n ** 60n]),
    of: new Set([[1, 2].join(), 3.5]),
    integers: [0, -1, 127, 128, -129, 2 ** 31, -(2 ** 31) - 1, 2 ** 32, 2 ** 40, -(2 ** 40), Number.MAX_SAFE_INTEGER],
    large: [2n ** 53n, -(2n ** 63n), 2n ** 64n - 1n],
    floats: [0.5, -1e300, Infinity],
    nested: [null, true, "è 𝄞", { "": [] }],
  };
  assert.deepEqual(await client.run("echo", value), value);
  const types = await client.run("kinds_of", {
    date: value.date,
    uuid: value.uuid,
    decimal: value.decimal,
    set: value.set,
    bytes: Buffer.from("x"),
    map: new Map([["a", 1]]),
    safe: 2 ** 40,
    big: 2n ** 60n,
    float: 0.5,
    none: null,
    gone: undefined,
    list: [],
  });
  assert.deepEqual(types, {
    date: "datetime",
    uuid: "UUID",
    decimal: "Decimal",
    set: "set",
    bytes: "bytes",
    map: "dict",
    safe: "int",
    big: "int",
    float: "float",
    none: "NoneType",
    list: "list",
  });
});

tested("what Python sends is read", async (client) => {
  const kinds = await client.run("kinds", new Set([[1, 2], new Set([3])]));
  assert.deepEqual(kinds.datetime, new Date("2026-02-03T02:05:06.000Z"));
  assert.deepEqual(kinds.naive, new LocalTime("2026-02-03T04:05:06"));
  assert.equal(String(kinds.uuid), "00000000-0000-0000-0000-000000000005");
  assert.equal(JSON.stringify(kinds.decimal), '"1.10"');
  assert.deepEqual(kinds.set, new Set([1, "a", [2, 3]]));
  assert.deepEqual(kinds.frozenset, new Set([1, 2]));
  assert.deepEqual(kinds.was, new Set([[1, 2], new Set([3])]));
});

tested("equal sets are the same data, in whatever order they were made", async (client) => {
  const job_id = randomUUID();
  await client.submit("echo", new Set([1, 2, "c"]), { job_id }).result();
  assert.deepEqual(await client.submit("echo", new Set(["c", 2, 1]), { job_id }).result(), new Set([1, 2, "c"]));
});

// --- workflows

tested("a workflow, and one whose steps come one by one", async (client) => {
  const job = client.workflow([
    { from: "A", to: ["B", "C"], cmd: "add", data: [1, 2] },
    { from: "B", to: "end_job", cmd: "echo" },
    { from: "C", to: "end_job", cmd: "times_two" },
  ]);
  assert.deepEqual(await job.result(), { B: 3, C: 6 });
  assert.equal((await client.status(job.job_id, { from: "A", to: ["B", "C"] })).state, "data_available");
  const job_id = randomUUID();
  const last = client.submit("times_two", null, { job_id, from: "B", standby: true });
  assert.equal(await last.accepted(), "standby");
  client.submit("add", [1, 2], { job_id, from: "A", to: "B" });
  assert.equal(await last.result(), 6);
});

tested("a workflow that fails throws what its step threw, and is retried and cancelled", async (client) => {
  const job = client.workflow([
    { from: "A", to: "B", cmd: "fail", data: "on purpose" },
    { from: "B", to: "end_job", cmd: "echo" },
  ]);
  await assert.rejects(job.result(), (error) => error instanceof JobError && error.type === "ValueError");
  assert.equal(await client.retry(job.job_id), 2);
  await assert.rejects(client.follow(job.job_id, { from: "B" }).result(), {
    type: "PredecessorFailed",
    message: "predecessor A failed",
  });
  const slow = client.submit("sleep", 60);
  await slow.accepted();
  assert.equal(await slow.cancel(), true);
  await assert.rejects(slow.result(), { name: "JobError", type: "Cancelled" });
});

tested("steps that are no workflow are refused together", async (client) => {
  const circle = [
    { from: "A", to: "B", cmd: "echo" },
    { from: "B", to: "A", cmd: "echo" },
  ];
  assert.throws(() => client.workflow(circle), refused("bad_field", "to"));
  assert.throws(() => client.workflow([]), refused("bad_field"));
  const job = client.workflow([...circle, { from: "C", to: "end_job", cmd: "echo" }]);
  await assert.rejects(job.result(), refused("bad_field", "to"));
  for (const step of job.steps) await assert.rejects(step.result(), refused("bad_field", "to"));
  await assert.rejects(job.accepted(), refused("bad_field", "to"));
});

// --- stops

tested("stops are heard: those known already, those that come, and those of others are left out", async (client) => {
  const [before, other, later] = [randomUUID(), randomUUID(), randomUUID()];
  const stop = async (type, uuid) => {
    await redis(0, "SET", `run:${type}:${uuid}`, 1);
    await redis(0, "SET", `run:${type}:${uuid}`, 0);
  };
  await stop("nodemail", before);
  await until(
    async () => (await client.snapshot("stops")).stops.some(([, uuid]) => uuid === before),
    "the router knows it",
  );
  const heard = [];
  for await (const each of client.stops("nodemail")) {
    heard.push(each);
    if (each.uuid === before) await Promise.all([stop("othermail", other), stop("nodemail", later)]);
    if (each.uuid === later) break;
  }
  assert.deepEqual(
    heard.map(({ uuid }) => uuid).filter((uuid) => uuid !== later),
    [before],
  );
  assert.ok(heard.every(({ type }) => type === "nodemail"));
});

tested("the stop of a runner that runs is heard and ends it", async (client) => {
  const uuid = randomUUID();
  assert.equal(await client.run("lives.start", { target: "idle", options: { type: "cam", uuid } }), `cam:${uuid}`);
  const record = `exesys:runner:cam:${uuid}`;
  await until(async () => (await redis(0, "HGET", record, "state")) === "running", "it runs");
  const stops = client.stops("cam", uuid);
  assert.equal(await client.stopRunner(`cam:${uuid}`), 1);
  assert.deepEqual((await stops.next()).value, { type: "cam", uuid });
  await stops.return();
  assert.equal((await stops.next()).done, true);
  await until(async () => (await redis(0, "HGET", record, "state")) === "stopped", "it ended");
});

// --- what is away, dies, or is another

tested("while the store is away it waits, and nothing is lost", async (client) => {
  const pid = await pidOf("redis");
  const name = `node-${randomUUID()}`;
  process.kill(pid, "SIGSTOP");
  let handles;
  try {
    handles = client.submitMany(
      "append",
      Array.from({ length: 20 }, (_, number) => [name, number]),
    );
    await assert.rejects(client.run("echo", 1, { timeout_ms: 1200 }), refused("result_timeout"));
    assert.deepEqual(new Set(handles.map((handle) => handle.state)), new Set([null]));
  } finally {
    process.kill(pid, "SIGCONT");
  }
  await Promise.all(handles.map((handle) => handle.result({ timeout_ms: 30_000 })));
  assert.equal((await redis(1, "LRANGE", name, 0, -1)).length, 20);
});

tested("a router killed with 1,000 jobs under way: all end, and none runs twice", async (client) => {
  const name = `node-${randomUUID()}`;
  const stops = client.stops("after-kill");
  const handles = client.submitMany(
    "append",
    Array.from({ length: 1000 }, (_, number) => [name, number]),
  );
  await until(() => handles.some((handle) => handle.done), "the first have ended");
  assert.ok(
    handles.some((handle) => !handle.done),
    "some are under way",
  );
  await kill("router");
  const more = client.submitMany(
    "append",
    Array.from({ length: 10 }, (_, number) => [name, 1000 + number]),
  );
  await Promise.all([...handles, ...more].map((handle) => handle.result({ timeout_ms: 60_000 })));
  const ran = (await redis(1, "LRANGE", name, 0, -1)).map(Number).sort((a, b) => a - b);
  assert.deepEqual(
    ran,
    Array.from({ length: 1010 }, (_, number) => number),
  );
  const uuid = randomUUID();
  await redis(0, "SET", `run:after-kill:${uuid}`, 1);
  await redis(0, "SET", `run:after-kill:${uuid}`, 0);
  assert.equal((await stops.next()).value.uuid, uuid, "the new router is listened to");
});

test("closing waits until all is taken, and then refuses", async () => {
  const client = await Client.connect({ home: HOME });
  const { job_id } = client.submit("echo", "taken");
  const under = client.submit("sleep", 0.2);
  const stops = client.stops();
  await client.close();
  assert.throws(() => client.submit("echo"), refused("unavailable"));
  await assert.rejects(client.cancel(job_id), refused("unavailable"));
  await assert.rejects(under.result(), refused("unavailable"));
  for await (const each of stops) assert.ok(each.type, "what was heard before is still told");
  const other = await Client.connect({ endpoint: ENDPOINT });
  assert.equal(await other.follow(job_id).result(), "taken");
  await other.close();
});

test("nobody there, or no such home", async () => {
  await assert.rejects(
    Client.connect({ endpoint: `ipc://${HOME}/run/nobody`, timeout_ms: 100 }),
    refused("unavailable"),
  );
  await assert.rejects(
    Client.connect({ home: "/nonexistent" }),
    (error) => refused("not_found")(error) && /bin\/exesys up/.test(error.fix),
  );
  await assert.rejects(
    Client.connect({ endpoint: "tcp://127.0.0.1:1", key: `${HOME}/run/system.json` }),
    refused("bad_config", "key"),
  );
  await assert.rejects(
    Client.connect({ endpoint: "tcp://127.0.0.1:1", key: "/nonexistent" }),
    refused("bad_config", "key"),
  );
});

test("a router of another version is told from none", async (t) => {
  const endpoint = `ipc://${HOME}/run/another-version`;
  const router = new Router({ linger: 0 });
  await router.bind(endpoint);
  t.after(() => router.close());
  const asked = (async () => {
    const [peer, hello] = await router.receive();
    await router.send([
      peer,
      encode(["ERROR", "bad_version", "this router speaks version 2, not 1", "version", "use a newer client"]),
    ]);
    return decode(new Uint8Array(hello));
  })();
  await assert.rejects(Client.connect({ endpoint }), refused("bad_version", "version"));
  const [kind, version, role, session] = await asked;
  assert.deepEqual([kind, version, role], ["HELLO", 1, "client"]);
  assert.match(session, /^[0-9a-f]{16}$/);
});
