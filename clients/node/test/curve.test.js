// A bus on TCP with keys: EXESYS_HOME is the system's, EXESYS_KEYS a directory with key files made there.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { curveKeyPair } from "zeromq";
import { Client } from "exesys";
import { HOME, redis } from "./system.js";

const KEYS = process.env.EXESYS_KEYS;

async function endpoint() {
  return JSON.parse(await readFile(join(HOME, "run", "system.json"), "utf8")).environment.EXESYS_BUS_ENDPOINT;
}

test("a client with a key: commands, and stops over the second socket", async () => {
  const client = await Client.connect({ endpoint: await endpoint(), key: join(KEYS, "shop.key") });
  assert.equal(await client.run("add", [1, 2]), 3);
  const stops = client.stops("keyed");
  await redis(0, "SET", "run:keyed:one", 1);
  await redis(0, "SET", "run:keyed:one", 0);
  assert.deepEqual((await stops.next()).value, { type: "keyed", uuid: "one" });
  await client.close();
});

test("on the system's own host its own key is found", async () => {
  const client = await Client.connect();
  assert.equal(await client.run("add", [1, 2]), 3);
  await client.close();
});

test("a key that is not known is told so at once", async () => {
  const known = JSON.parse(await readFile(join(KEYS, "shop.key"), "utf8"));
  const { publicKey, secretKey } = curveKeyPair();
  const key = join(KEYS, "stranger.key");
  await writeFile(key, JSON.stringify({ ...known, public: publicKey, secret: secretKey }));
  const began = performance.now();
  await assert.rejects(Client.connect({ endpoint: await endpoint(), key }), { code: "unauthorized", field: "key" });
  assert.ok(performance.now() - began < 5000);
});

test("without a key nobody answers", async () => {
  const found = { endpoint: await endpoint(), home: "/nonexistent", timeout_ms: 500 };
  await assert.rejects(Client.connect(found), { code: "unavailable" });
});
