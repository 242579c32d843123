// Data as bytes: MessagePack with the extension types of docs/protocol.md.
//
// The library does the bytes. What it would lose without a word is dealt with here, on the way in and
// out: large integers, sets, dates with their zone, and whatever cannot be sent at all.

import { decode, encode, ExtData, ExtensionCodec } from "@msgpack/msgpack";
import { ExesysError } from "./errors.js";

const DATETIME = 1,
  UUID_ = 2,
  DECIMAL = 3,
  SET = 4,
  FROZENSET = 5,
  TUPLE = 6;
const MOST_DEEP = 1000; // the router has its own limit, and says so
const SENDABLE =
  "Send null, booleans, numbers, BigInt (64 bit), strings, Uint8Array, arrays, objects, Set, Date, UUID or Decimal.";

const text = new TextEncoder();
const untext = new TextDecoder();

/** A UUID, which Python gives and takes as `uuid.UUID`. */
export class UUID {
  /** @param {string} written 32 hexadecimal digits, with or without hyphens */
  constructor(written) {
    const digits = written.replaceAll("-", "").toLowerCase();
    if (!/^[0-9a-f]{32}$/.test(digits)) throw new TypeError(`${written} is no UUID`);
    this.text = digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  }
  toString() {
    return this.text;
  }
  toJSON() {
    return this.text;
  }
}

/** A decimal number, kept as its text: Python's `decimal.Decimal`. */
export class Decimal {
  /** @param {string | number | bigint} written such as "0.10" */
  constructor(written) {
    this.text = String(written);
  }
  toString() {
    return this.text;
  }
  toJSON() {
    return this.text;
  }
}

/** A date and time that no `Date` can hold, because it has no zone: its ISO 8601 text. */
export class LocalTime {
  /** @param {string} written such as "2026-01-31T12:00:00" */
  constructor(written) {
    this.text = written;
  }
  toString() {
    return this.text;
  }
  toJSON() {
    return this.text;
  }
}

// --- values to bytes --------------------------------------------------------

/**
 * Turn a value into MessagePack.
 * @param {unknown} value
 * @returns {Uint8Array}
 * @throws {ExesysError} `bad_field`, naming what cannot be sent
 */
export function pack(value) {
  return encode(sendable(value, 0, false), { useBigInt64: true, maxDepth: MOST_DEEP + 10 });
}

function sendable(value, depth, inSet) {
  switch (typeof value) {
    case "undefined":
      return null;
    case "boolean":
      return value;
    case "string":
      return whole(value);
    case "number":
      // With useBigInt64 the library sends what has more than 32 bits as a float.
      return Number.isSafeInteger(value) && (value > 0xffffffff || value < -0x80000000) ? BigInt(value) : value;
    case "bigint":
      return integer(value);
    case "object":
      return value === null ? null : object(value, depth, inSet);
    default:
      throw unsendable(`a ${typeof value} cannot be sent.`);
  }
}

function whole(value) {
  if (/[\ud800-\udfff]/u.test(value)) throw unsendable("a text holds half of a surrogate pair.");
  return value;
}

function integer(value) {
  if (value < -(2n ** 63n) || value >= 2n ** 64n) throw unsendable("an integer is beyond 64 bits.");
  return value >= -0x80000000n && value <= 0xffffffffn ? Number(value) : value;
}

function object(value, depth, inSet) {
  if (depth > MOST_DEEP) throw unsendable(`the data is nested deeper than ${MOST_DEEP} levels, or in a circle.`);
  if (value instanceof Uint8Array) return value;
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  if (value instanceof Date) return new ExtData(DATETIME, text.encode(instant(value)));
  if (value instanceof LocalTime) return new ExtData(DATETIME, text.encode(value.text));
  if (value instanceof UUID)
    return new ExtData(UUID_, new Uint8Array(Buffer.from(value.text.replaceAll("-", ""), "hex")));
  if (value instanceof Decimal) return new ExtData(DECIMAL, text.encode(value.text));
  if (value instanceof Set) return new ExtData(inSet ? FROZENSET : SET, members(value, depth));
  if (Array.isArray(value)) {
    if (inSet) return new ExtData(TUPLE, members(value, depth));
    return value.map((item) => sendable(item, depth + 1, false));
  }
  if (inSet) throw unsendable("an object cannot be a member of a Set: Python could not find it there.");
  return map(entries(value), depth);
}

function instant(date) {
  if (Number.isNaN(date.getTime())) throw unsendable("an invalid Date cannot be sent.");
  return date.toISOString().replace("Z", "+00:00"); // as Python writes it
}

/** A set's members in the order of their bytes, as Python sends them, so that equal sets are equal bytes. */
function members(values, depth) {
  const parts = [...values].map((item) => encode(sendable(item, depth + 1, true), { useBigInt64: true }));
  if (values instanceof Set) parts.sort(Buffer.compare);
  const count = parts.length;
  const head = count < 16 ? [0x90 | count] : count < 65536 ? [0xdc, count >> 8, count & 255] : undefined;
  if (head === undefined) throw unsendable(`a Set has ${count} members; 65,535 can be sent.`);
  return new Uint8Array(Buffer.concat([Uint8Array.from(head), ...parts]));
}

function entries(value) {
  if (value instanceof Map) return [...value];
  const kind = Object.getPrototypeOf(value);
  if (kind === Object.prototype || kind === null || Object.getPrototypeOf(kind) === null) return Object.entries(value);
  throw unsendable(`a ${value.constructor?.name ?? "thing of a class"} cannot be sent.`);
}

function map(pairs, depth) {
  const made = Object.create(null);
  for (const [key, item] of pairs) {
    if (typeof key !== "string")
      throw unsendable("a Map has a key that is no string, and only those can be sent from here.");
    if (item !== undefined) made[whole(key)] = sendable(item, depth + 1, false); // left out, as in JSON
  }
  return made;
}

function unsendable(problem) {
  return new ExesysError("bad_field", problem, { field: "data", fix: SENDABLE });
}

// --- bytes to values --------------------------------------------------------

const types = new ExtensionCodec();
const never = () => null;

function register(type, read) {
  types.register({ type, encode: never, decode: read });
}

register(DATETIME, (bytes) => dated(untext.decode(bytes)));
register(UUID_, (bytes) => new UUID(Buffer.from(bytes).toString("hex")));
register(DECIMAL, (bytes) => new Decimal(untext.decode(bytes)));
register(SET, (bytes) => new Set(read(bytes)));
register(FROZENSET, (bytes) => new Set(read(bytes)));
register(TUPLE, (bytes) => read(bytes));

function dated(written) {
  const date = new Date(written);
  const zoned = /(?:Z|[+-]\d\d:\d\d)$/.test(written);
  return zoned && !Number.isNaN(date.getTime()) ? date : new LocalTime(written);
}

/**
 * Turn MessagePack into a value. Integers beyond 2^53 come as BigInt, a map's number keys as text.
 * @param {Uint8Array} bytes
 * @returns {any}
 * @throws {ExesysError} `bad_data` when it is none, or holds what JavaScript has no place for
 */
export function unpack(bytes) {
  try {
    return read(bytes);
  } catch (error) {
    throw new ExesysError("bad_data", `the data cannot be read here: ${error.message}.`);
  }
}

function read(bytes) {
  return readable(decode(bytes, { extensionCodec: types, useBigInt64: true }));
}

function readable(value) {
  if (typeof value === "bigint") {
    return value >= Number.MIN_SAFE_INTEGER && value <= Number.MAX_SAFE_INTEGER ? Number(value) : value;
  }
  if (typeof value !== "object" || value === null) return value;
  if (value instanceof Uint8Array) return new Uint8Array(value); // its own memory, not a part of the frame's
  if (Array.isArray(value)) return (value.forEach((item, place) => (value[place] = readable(item))), value);
  if (value instanceof ExtData) throw new Error(`extension type ${value.type} is unknown`);
  if (Object.getPrototypeOf(value) === Object.prototype) {
    for (const key of Object.keys(value)) value[key] = readable(value[key]);
  }
  return value;
}

// --- messages of the bus ----------------------------------------------------

/** @param {unknown[]} message */
export function frame(message) {
  return encode(message);
}

/**
 * @param {Uint8Array} bytes one frame
 * @returns {any[] | null} the message, null when it is none
 */
export function unframe(bytes) {
  try {
    const message = decode(new Uint8Array(bytes));
    return Array.isArray(message) ? message : null;
  } catch {
    return null;
  }
}
