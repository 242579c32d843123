// Numbers and times as people read them. Units stand in the names.

const whole = new Intl.NumberFormat("en");

/** 12345 → 12,345; nothing → –. */
export const count = (value) => (Number.isFinite(value) ? whole.format(Math.round(value)) : "–");

/** A rate: 0, 0.4, 12, 1,234. */
export const rate = (value) => (!Number.isFinite(value) ? "–" : value > 0 && value < 10 ? value.toFixed(1) : count(value));

/** A duration from seconds: 0.8 ms, 12 ms, 3.4 s, 2 min, 5 h, 3 d. */
export function seconds(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 0.001) return `${Number((value * 1000).toFixed(2))} ms`;
  if (value < 0.01) return `${Number((value * 1000).toFixed(1))} ms`;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 10) return `${Number(value.toFixed(1))} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} d`;
}

export const millis = (value) => (Number.isFinite(value) ? seconds(value / 1000) : "–");

/** How long ago a moment was, in ms since 1970. */
export function ago(moment_ms, now_ms = Date.now()) {
  if (!Number.isFinite(moment_ms)) return "";
  const past_s = (now_ms - moment_ms) / 1000;
  return past_s < 1 ? "now" : `${seconds(Math.floor(past_s))} ago`;
}

/** How long until a moment. */
export function until(moment_ms, now_ms = Date.now()) {
  const left_s = (moment_ms - now_ms) / 1000;
  return left_s < 1 ? "now" : `in ${seconds(Math.ceil(left_s))}`;
}

/** A moment in this browser's time zone, to the second; with the day unless it is today, and the year if it is another. */
export function moment(ms) {
  if (!Number.isFinite(ms)) return "";
  const date = new Date(ms);
  const now = new Date();
  const pad = (number) => String(number).padStart(2, "0");
  const time = `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  if (date.toDateString() === now.toDateString()) return time;
  const day = `${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${time}`;
  return date.getFullYear() === now.getFullYear() ? day : `${date.getFullYear()}-${day}`;
}

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 1024) return `${value} B`;
  if (value < 1 << 20) return `${Math.round(value / 1024)} kB`;
  return `${(value / (1 << 20)).toFixed(value < 10 << 20 ? 1 : 0)} MB`;
}

/** A value of JSON, set out over lines. A text that is the whole value stays as it is. */
export const json = (value) => (value === undefined ? "" : JSON.stringify(value, null, 2));

/** A sentence of REST's, which begins small, with a capital letter. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
