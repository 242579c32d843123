// The dashboard: it learns where REST is and as whom it asks, and shows the page that the address names.

import * as api from "./api.js";
import { askToken } from "./dialog.js";
import { h, put, say } from "./dom.js";
import { count } from "./format.js";
import { listen } from "./keyboard.js";
import * as live from "./live.js";
import { Page } from "./page.js";
import * as role from "./role.js";
import { begin as beginTheme } from "./theme.js";
import { fail, toast } from "./toast.js";
import apps from "./pages/apps.js";
import dead from "./pages/dead.js";
import help from "./pages/help.js";
import job from "./pages/job.js";
import jobs from "./pages/jobs.js";
import overview from "./pages/overview.js";
import queues from "./pages/queues.js";
import runners from "./pages/runners.js";
import send from "./pages/send.js";
import timers from "./pages/timers.js";
import workers from "./pages/workers.js";

const PAGES = { "": overview, jobs, job, send, dead, queues, workers, runners, timers, apps, help };
const PARENT = { job: "jobs" };
const AGAIN_MS = 2000;
const content = document.getElementById("content");
let page = null;
let where = null;

/** Read an address like #/job/ID?state=error. */
function placeOf(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  let parts = ["?"]; // no name of a page
  try {
    parts = path.split("/").map(decodeURIComponent);
  } catch { /* a % that begins no character */ }
  const [name, ...rest] = parts;
  return { name, rest, query: new URLSearchParams(query) };
}

function show() {
  const { name, rest, query } = placeOf(location.hash);
  page?.leave();
  page = new Page(put(content));
  content.className = "";
  content.scrollTop = 0;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === (PARENT[name] ?? name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const open = Object.hasOwn(PAGES, name) ? PAGES[name] : null;
  if (!open) {
    page.head("There is no such page");
    content.append(h("p", {}, h("a", { href: "#/" }, "To the overview")));
    return;
  }
  try {
    open(page, { rest, query, where });
  } catch (error) {
    fail(error);
  }
}

/** Say in the corner whether REST is there, and in a message when that changes. */
function watchLink() {
  const link = document.getElementById("link");
  let away = null;
  const tell = (state, text) => { link.dataset.state = state; say(link, text); };
  const back = () => {
    if (!away) return;
    away.remove();
    away = null;
    toast("Connected again.");
  };
  api.onReach((there, error) => {
    if (!there) {
      tell("away", "REST is away");
      away ??= toast(error.message, { kind: "error", fix: error.fix || "It is tried again." });
    } else {
      back();
      if (live.link() === "live") tell("live", "live");
    }
  });
  live.on("link", ({ state, error }) => {
    if (state === "live") tell("live", "live");
    else tell("away", error?.status === 404 ? "no events here" : "connecting again");
  });
}

function watchCounts() {
  const waits = h("span", { className: "count" });
  document.querySelector("nav a[data-page=queues]").append(waits);
  live.on("stats", ({ queues = [] }) => {
    const waiting = queues.reduce((sum, each) => sum + each.waiting, 0);
    say(waits, waiting ? count(waiting) : "");
  });
}

/** Try until it is done: who opened this page while the system starts sees it come. */
async function patiently(work) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (error instanceof api.ApiError && !error.away && error.status !== 401) throw error;
      if (error.status === 401) fail(error);
      await new Promise((done) => setTimeout(done, AGAIN_MS));
    }
  }
}

async function begin() {
  beginTheme();
  watchLink();
  where = await (await fetch("/where.json")).json();
  api.begin(where.rest, async (why) => {
    const given = await askToken(why);
    if (given) api.keep(given);
    return given !== "";
  });
  await patiently(role.learn);
  role.show();
  watchCounts();
  live.begin();
  listen();
  addEventListener("hashchange", show);
  show();
}

addEventListener("unhandledrejection", (event) => { event.preventDefault(); fail(event.reason); });
begin().catch(fail);
