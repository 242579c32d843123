// The pure parts, where each message can be lost: what is under way, and the stops.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Desk } from "../src/desk.js";
import { Handle } from "../src/handle.js";
import { Subscription } from "../src/stops.js";

const LIMITS = { data_bytes: 100 };
const [SESSION, BEAT_S, MISSES] = ["0123456789abcdef", 1, 5];

/** A desk that was greeted at 0, and what it says without its heartbeats. */
function greeted(epoch = 1) {
  const events = [];
  const desk = new Desk(SESSION, (kind, fields) => events.push([kind, fields]));
  const welcome = (now, of = epoch) =>
    desk.receive(["WELCOME", 1, SESSION, of, BEAT_S, MISSES, LIMITS, {}, "", {}], now);
  assert.deepEqual(desk.outgoing(0), [["HELLO", 1, "client", SESSION, "", {}]]);
  welcome(0);
  const says = (now) => desk.outgoing(now).filter(([kind]) => kind !== "HB");
  return { desk, welcome, says, events };
}

function put(desk, data = new Uint8Array(3)) {
  const handle = new Handle(null, { job_id: "j", from: "client", to: "end_job", cmd: "echo" });
  desk.put(handle, ["client", "end_job", "echo", data, "j", {}], true, false);
  return handle;
}

test("HELLO comes again each second, and heartbeats follow", () => {
  const desk = new Desk(SESSION, () => {});
  assert.equal(desk.outgoing(0).length, 1);
  assert.equal(desk.wakeInMs(400), 600);
  assert.equal(desk.outgoing(999).length, 0);
  assert.equal(desk.outgoing(1000)[0][0], "HELLO");
  const { desk: known } = greeted();
  assert.deepEqual(known.outgoing(0), [["HB", SESSION, 1, 0, 0, [], []]]);
  assert.deepEqual(known.outgoing(999), []);
  assert.equal(known.outgoing(1000)[0][0], "HB");
});

test("what gets no answer is sent again with the same bytes, and what was taken is asked for", () => {
  const { desk, says } = greeted();
  const handle = put(desk);
  const [[kind, [item]]] = says(0);
  assert.equal(kind, "SUBMIT");
  assert.deepEqual(says(9900), []);
  assert.deepEqual(says(10_000), [["SUBMIT", [item]]]);
  desk.receive(["SUBMIT_ACK", [[1, 2, null]]], 10_010);
  assert.equal(handle.state, "processing");
  assert.deepEqual(says(15_000), []);
  const question = ["STATUS", [[1, "j", "client", "end_job", true]]];
  assert.deepEqual(says(15_100), [question]);
  assert.deepEqual(says(25_100), [question], "the answer was lost, too");
  desk.receive(["STATUS", [[1, 3, new Uint8Array([0x81, 0xa3, 0x45, 0x4f, 0x4a, 1])]]], 25_110);
  assert.equal(handle.done, true);
  desk.receive(["DONE", [[1, 4, [new Uint8Array(), 1]]]], 25_120);
  assert.equal(handle.state, "data_available", "an answer to a tag of before changes nothing");
  assert.deepEqual(says(60_000), []);
});

test("a new router is sent what was not taken, and asked for what was", () => {
  const { desk, welcome, says } = greeted();
  put(desk);
  put(desk);
  says(0);
  desk.receive(["SUBMIT_ACK", [[1, 0, null]]], 10);
  desk.receive(["ERROR", "unknown_session", "", "", ""], 20);
  assert.equal(desk.outgoing(20)[0][0], "HELLO");
  assert.deepEqual(says(21), []);
  welcome(30, 2);
  const [[submit, items], [status, queries]] = says(30);
  assert.deepEqual(
    [submit, items.map(([tag]) => tag), status, queries.map(([tag]) => tag)],
    ["SUBMIT", [2], "STATUS", [1]],
  );
});

test("BUSY puts off what it names", () => {
  const { desk, says, events } = greeted();
  put(desk);
  says(0);
  desk.receive(["BUSY", [1, 99], "store", 0.5], 10);
  assert.deepEqual(events.at(-1), ["BUSY", [[1, 99], "store", 0.5]]);
  assert.deepEqual(says(509), []);
  assert.equal(says(600)[0][0], "SUBMIT");
});

test("silence of a lease is noticed", () => {
  const { desk } = greeted();
  assert.equal(desk.silent(5000), false);
  assert.equal(desk.silent(5001), true);
  desk.receive(["HB_ACK", SESSION, 1, 0, []], 4000);
  assert.equal(desk.silent(9000), false);
});

test("a workflow goes in one message, again whole, and is settled by one answer", () => {
  const { desk, says } = greeted();
  const steps = ["A", "B"].map((from) => new Handle(null, { job_id: "j", from, to: "end_job", cmd: "echo" }));
  desk.putWorkflow(
    steps,
    steps.map(({ from }) => [from, "end_job", "echo", new Uint8Array(1), "j", {}]),
    [true, true],
  );
  const [[, items]] = says(0);
  assert.deepEqual(
    items.map((item) => item.at(-1)),
    [1, 1],
  );
  assert.deepEqual(says(10_000), [["SUBMIT", items]]);
  desk.receive(["DONE", [[1, 3, new Uint8Array([0x81, 0xa3, 0x45, 0x4f, 0x4a, 1])]]], 10_010);
  assert.deepEqual(says(20_000), [["STATUS", [[2, "j", "B", "end_job", true]]]]);
});

test("many are sent in parts, and asked for little by little", () => {
  const { desk, says } = greeted();
  for (let number = 0; number < 2500; number++) put(desk);
  assert.deepEqual(
    says(0).map(([, items]) => items.length),
    [1000, 1000, 500],
  );
  desk.receive(["SUBMIT_ACK", Array.from({ length: 2500 }, (_, at) => [at + 1, 0, null])], 0);
  assert.equal(desk.unanswered, 0);
  assert.equal(says(5000)[0][1].length, 100);
  assert.equal(says(5100)[0][1].length, 100);
});

test("what is too large is refused here, and so is all that came with it", () => {
  const { desk, says } = greeted();
  const handle = put(desk, new Uint8Array(101));
  assert.deepEqual(says(0), []);
  assert.equal(handle.error.code, "too_large");
  assert.equal(desk.unanswered, 0);
});

test("a question is asked again until it is answered or forgotten", () => {
  const { desk, says } = greeted();
  const told = [];
  const tag = desk.ask(
    (of) => ["CHANGE", of, "cancel", "j"],
    (fields) => told.push(fields),
  );
  assert.deepEqual(says(0), [["CHANGE", tag, "cancel", "j"]]);
  assert.deepEqual(says(2000), [["CHANGE", tag, "cancel", "j"]]);
  desk.receive(["CHANGED", tag, 1, null], 2100);
  desk.receive(["CHANGED", tag, 0, null], 2200);
  assert.deepEqual(told, [[tag, 1, null]]);
  desk.forget(
    desk.ask(
      (of) => ["CHANGE", of, "cancel", "j"],
      () => assert.fail("it was forgotten"),
    ),
  );
  assert.deepEqual(says(5000), []);
});

// --- stops

function subscribed() {
  const given = [];
  let asked = 0;
  const subscription = new Subscription(
    (type, uuid) => given.push(`${type}:${uuid}`),
    () => asked++,
  );
  subscription.welcomed(7);
  return { subscription, given, asked: () => asked };
}

test("each stop is given once, however it is told", () => {
  const { subscription, given, asked } = subscribed();
  assert.equal(asked(), 1);
  subscription.snapshot(7, 3, [["mail", "a"]]);
  subscription.event(7, 4, ["mail", "b"]);
  subscription.acknowledged(7, 4, [
    ["mail", "a"],
    ["mail", "b"],
  ]);
  subscription.event(7, 5, ["mail", ""]);
  assert.deepEqual(given, ["mail:a", "mail:b", "mail:"]);
  assert.equal(asked(), 1);
});

test("a gap, a lost event, and a new router are asked about", () => {
  const { subscription, given, asked } = subscribed();
  subscription.snapshot(7, 3, []);
  subscription.event(7, 5, ["lost", "session"]);
  assert.equal(asked(), 2, "4 was lost");
  subscription.acknowledged(7, 6, [["mail", "c"]]);
  assert.equal(asked(), 3, "6 was lost");
  subscription.welcomed(8);
  subscription.snapshot(8, 1, [["mail", "c"]]);
  assert.equal(asked(), 4);
  assert.deepEqual(
    given.filter((each) => each.startsWith("mail")),
    ["mail:c", "mail:c"],
    "an old one comes again",
  );
});

test("what belongs to another shard is refused with where it belongs", () => {
  const { desk, says } = greeted();
  const handle = put(desk);
  says(0);
  const settled = [];
  const tag = desk.ask(
    (tag) => ["CHANGE", tag, "cancel", "j"],
    (fields) => settled.push(fields),
  );
  desk.receive(["MOVED", [1, tag], "s01", "tcp://10.0.0.2:5555"], 10);
  assert.equal(desk.unanswered, 0);
  assert.deepEqual(says(60_000), []);
  assert.equal(settled[0][1], -1);
  assert.equal(settled[0][2][0], "moved");
  assert.match(settled[0][2][3], /tcp:\/\/10\.0\.0\.2:5555/);
  return assert.rejects(handle.result(), { code: "moved" });
});
