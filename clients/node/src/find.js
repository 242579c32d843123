// Where the system is, and with which keys one goes there.

import { access, readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { ExesysError } from "./errors.js";

/**
 * @param {{endpoint?: string, key?: string, home?: string}} options `endpoint` of the bus, and `key`, the path of a key
 *   file; or `home`, the directory of a system on this host
 * @param {Record<string, string | undefined>} environ
 * @returns {Promise<{endpoint: string, keys: {public: string, secret: string, server: string} | null}>}
 * @throws {ExesysError} `not_found` when no system is there, `bad_config` when a key file is none
 */
export async function locate({ endpoint, key, home }, environ = process.env) {
  const there = resolve(home ?? environ.EXESYS_HOME ?? "var");
  if (!endpoint && !home && environ.EXESYS_BUS_ENDPOINT) {
    [endpoint, key] = [environ.EXESYS_BUS_ENDPOINT, key ?? environ.EXESYS_BUS_KEY];
  }
  if (!endpoint) {
    const system = await running(there);
    endpoint = system.EXESYS_BUS_ENDPOINT || `ipc://${there}/run/bus`;
  }
  if (!endpoint.startsWith("tcp://")) return { endpoint, keys: null };
  const local = join(there, "keys", "private", "local.key");
  const path = key || ((await exists(local)) ? local : "");
  return { endpoint: near(endpoint), keys: path ? await readKeys(path) : null };
}

/** The settings of the system that was started in a home. */
async function running(home) {
  const path = join(home, "run", "system.json");
  try {
    return JSON.parse(await readFile(path, "utf8")).environment;
  } catch (error) {
    const fix = "Start it with `bin/exesys up`, set EXESYS_HOME to its home, or give `home` or `endpoint`.";
    throw new ExesysError("not_found", `no system runs in ${home}: ${error.message}.`, { fix });
  }
}

async function exists(path) {
  return access(path).then(
    () => true,
    () => false,
  );
}

async function readKeys(path) {
  const fix = "Make one with `bin/exesys keys new`, where the router runs, and bring it here.";
  let told;
  try {
    told = JSON.parse(await readFile(path, "utf8"));
  } catch (error) {
    throw new ExesysError("bad_config", `${path} is no key file that can be read: ${error.message}.`, {
      field: "key",
      fix,
    });
  }
  const { public: own, secret, server } = told;
  if (![own, secret, server].every((each) => typeof each === "string" && each.length === 40)) {
    throw new ExesysError("bad_config", `${path} lacks a key of 40 characters.`, { field: "key", fix });
  }
  return { public: own, secret, server };
}

const ANYWHERE = /^tcp:\/\/(0\.0\.0\.0|\*|\[::\]):/;

/** One who listens everywhere on this host is reached on it. */
function near(endpoint) {
  return endpoint.replace(ANYWHERE, "tcp://127.0.0.1:");
}

/** Where a further socket of the bus is: one that listens everywhere is where its front is. */
export function beside(front, endpoint) {
  return endpoint.replace(ANYWHERE, `${front.slice(0, front.lastIndexOf(":"))}:`);
}
