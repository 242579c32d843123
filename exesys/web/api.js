// Asking REST: where it is, with which token, and what its errors say.

const KEPT = "exesys.token";
const listeners = new Set();
let rest = "";
let askToken = async () => "";
let asking = null;

/** What REST refused, or that it did not answer (`status` 0). */
export class ApiError extends Error {
  constructor(status, code, message, fix = "", field = "") {
    super(message);
    Object.assign(this, { status, code, fix, field });
  }

  /** Whether it is the server that is away, and not the request that is wrong. */
  get away() {
    return this.status === 0 || this.status === 503;
  }
}

/** Learn where REST is. `ask(why)` is called when a token is needed, and gives one, or "". */
export function begin(url, ask) {
  rest = url;
  askToken = ask;
}

export const restUrl = () => rest;
export const token = () => sessionStorage.getItem(KEPT) ?? "";

/** Keep the token for this tab, or forget it with "". */
export function keep(value) {
  if (value) sessionStorage.setItem(KEPT, value);
  else sessionStorage.removeItem(KEPT);
}

/** Be told true when REST answers, and false (with the error) when it does not. */
export function onReach(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

const tell = (there, error) => listeners.forEach((listener) => listener(there, error));

function headers(more) {
  return token() ? { ...more, Authorization: `Bearer ${token()}` } : more;
}

async function problemOf(answer) {
  const text = await answer.text();
  try {
    const { code, message, fix, field } = JSON.parse(text).error;
    return new ApiError(answer.status, code, message, fix, field);
  } catch {
    return new ApiError(answer.status, "", text.slice(0, 200) || answer.statusText);
  }
}

/** Open a request and return the answer, whatever its kind; a body that is a string is JSON already. Raises ApiError; asks for a token where one is needed. */
export async function open(path, { method = "GET", body, accept = "application/json", signal, extra = {} } = {}) {
  for (;;) {
    const sent = headers({ Accept: accept, ...extra, ...(body === undefined ? {} : { "Content-Type": "application/json" }) });
    let answer;
    try {
      answer = await fetch(rest + path, { method, headers: sent, signal, cache: "no-store",
        body: body === undefined || typeof body === "string" ? body : JSON.stringify(body) });
    } catch (cause) {
      if (signal?.aborted) throw cause;
      const error = new ApiError(0, "away", `REST at ${rest} does not answer.`, "It is tried again; `bin/exesys status` shows what runs.");
      tell(false, error);
      throw error;
    }
    if (answer.ok) {
      tell(true);
      return answer;
    }
    const error = await problemOf(answer);
    if (error.status === 401) {
      asking ??= askToken(error.message).finally(() => { asking = null; });
      if (await asking) continue;
    }
    tell(error.status !== 503, error);
    throw error;
  }
}

/** Ask, and return the JSON of the answer. */
export async function ask(path, options) {
  const answer = await open(path, options);
  return answer.json();
}

export const get = (path, signal) => ask(path, { signal });
export const post = (path, body = {}) => ask(path, { method: "POST", body });
export const remove = (path) => ask(path, { method: "DELETE" });
export const text = async (path, signal) => (await open(path, { accept: "text/plain", signal })).text();

/** Make the query of a request from what is set in `values`. */
export function query(values) {
  const found = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== undefined && value !== null));
  const written = found.toString();
  return written ? `?${written}` : "";
}
