// The page of the REST interface: reads /openapi.json and shows it. All text goes in as text, never as HTML.

import { begin, keep, open, restUrl, token } from "../api.js";
import { h, put } from "../dom.js";
import { address, curl, example, JSON_KIND, nameOf, operations, spell } from "./words.js";

const MOST_SHOWN = 200_000; // characters of an answer
const STREAM_MS = 3000; // so long an answer is read that does not end
const page = document.getElementById("page");
const find = document.getElementById("find");
const given = document.getElementById("token");
let known = {};

/** A schema in words, the names of others as links. */
const shown = (schema) => spell(schema).map((part) => {
  if (part.note) return h("span", { className: "soft" }, part.note);
  return part.name ? h("a", { href: `#schema-${part.name}` }, part.name) : part;
});

/** Text with `code` in it. */
const worded = (text) => text.split("`").map((part, place) => (place % 2 ? h("code", {}, part) : part));

const named = (schema) => (schema.$ref ? known[nameOf(schema.$ref)] : schema);

function operation({ path, method, told }) {
  const box = h("details", { className: "asked", id: told.operationId }, h("summary", {},
    h("span", { className: `method ${method}` }, method), h("span", { className: "path" }, path), h("span", { className: "says" }, worded(told.summary))));
  box.dataset.words = `${method} ${path} ${told.summary}`.toLowerCase();
  // What is inside is made when it is opened: there are dozens.
  box.addEventListener("toggle", () => {
    if (box.open && box.children.length === 1) box.append(inside(path, method, told));
  });
  return box;
}

function inside(path, method, told) {
  const parameters = told.parameters ?? [];
  const body = told.requestBody?.content[JSON_KIND].schema;
  const inputs = new Map(parameters.filter((each) => each.in !== "header")
    .map(({ name }) => [name, h("input", { "aria-label": name, placeholder: name })]));
  const url = () => address(restUrl(), path, parameters, (name) => inputs.get(name)?.value.trim() ?? "");
  const line = h("pre", { className: "curl" });
  const stream = Object.keys(told.responses["200"]?.content ?? {}).some((kind) => kind.startsWith("text/event-stream"));
  const write = () => {
    line.textContent = curl(method, url(), { body: body && example(body, known), token: token() !== "", stream });
  };
  write();
  return h("div", {},
    told.description.split("\n\n").map((text) => h("p", {}, worded(text))),
    parameters.length > 0 && [h("h3", {}, "Parameters"), h("table", {}, parameters.map((each) => h("tr", {},
      h("th", {}, h("code", {}, each.name)), h("td", {}, each.in), h("td", {}, shown(each.schema)),
      h("td", { className: "soft" }, worded(named(each.schema).description ?? "")))))],
    body && [h("h3", {}, "Body"), h("pre", {}, shown(body), body.$ref && [" = ", shown(named(body))])],
    h("h3", {}, "Answers"), h("table", {}, Object.entries(told.responses).map(([status, each]) => h("tr", {},
      h("th", {}, status), h("td", {}, answers(each.content)), h("td", { className: "soft" }, each.description)))),
    h("h3", {}, "curl"), line,
    method === "GET" && trial(url, [...inputs.values()], write, stream));
}

const answers = (content) => Object.entries(content)
  .flatMap(([kind, { schema }], place) => [place ? " or " : "", ...(kind === JSON_KIND ? shown(schema) : [kind.split(";")[0]])]);

/** A form that asks: only for what changes nothing. */
function trial(url, inputs, write, stream) {
  const status = h("span", { role: "status", className: "soft" });
  const said = h("pre", { hidden: true, tabindex: 0 });
  const form = h("form", { className: "row", oninput: write, onsubmit: async (event) => {
    event.preventDefault();
    const since = performance.now();
    const took = () => `${Math.round(performance.now() - since)} ms`;
    try {
      const answer = await open(url().slice(restUrl().length), { accept: stream ? "text/event-stream" : JSON_KIND });
      const text = stream ? await beginning(answer) : await answer.text();
      put(status, `${answer.status}, ${took()}`).className = "soft";
      show(said, text);
    } catch (error) {
      put(status, `${error.status || "no answer"}, ${took()}`).className = "wrong";
      show(said, [error.message, error.fix].filter(Boolean).join("\n"));
    }
  } }, inputs, h("button", {}, "Try it"), status);
  return [h("h3", {}, "Try it"), form, said];
}

function show(element, text) {
  put(element, pretty(text.slice(0, MOST_SHOWN)));
  element.hidden = false;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** Read what comes first of an answer that does not end. */
async function beginning(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const timer = setTimeout(() => reader.cancel(), STREAM_MS);
  let text = "";
  for (let part = await reader.read(); !part.done && text.length < MOST_SHOWN; part = await reader.read()) text += part.value;
  clearTimeout(timer);
  await reader.cancel();
  return text;
}

function fill(told) {
  known = told.components.schemas;
  const groups = new Map();
  for (const each of operations(told)) groups.set(each.told.tags[0], [...(groups.get(each.told.tags[0]) ?? []), operation(each)]);
  const schemas = Object.keys(known).sort().map((name) => h("details", { className: "asked", id: `schema-${name}` },
    h("summary", {}, h("span", { className: "path" }, name), h("span", { className: "says" }, worded(known[name].description ?? ""))),
    h("div", {}, h("pre", {}, shown(known[name])))));
  groups.set("schemas", schemas);
  put(page, h("p", { className: "soft" }, `ExeSys ${told.info.version} at ${restUrl()}. `, worded(told.info.description.split("\n\n").at(-1))),
    [...groups].map(([tag, boxes]) => h("section", { id: `group-${tag}` }, h("h2", {}, tag), boxes)));
  put(document.getElementById("groups"), [...groups.keys()].map((tag) => h("a", { href: `#group-${tag}` }, tag)));
  const link = document.getElementById("document");
  link.href = `${restUrl()}/openapi.json`;
  link.hidden = false;
  filter();
  jump();
}

/** Open what the address names behind its #. */
function jump() {
  const there = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (there instanceof HTMLDetailsElement) there.open = true;
  there?.scrollIntoView();
}

function filter() {
  const word = find.value.trim().toLowerCase();
  for (const each of page.querySelectorAll("details")) each.hidden = !(each.dataset.words ?? each.id.toLowerCase()).includes(word);
  for (const each of page.querySelectorAll("section")) each.hidden = !each.querySelector("details:not([hidden])");
}

async function load() {
  try {
    fill(await (await open("/openapi.json")).json());
  } catch (error) {
    put(page, h("p", { className: "wrong", role: "alert" }, `${error.message} ${error.status === 401 ? "Give a token above." : error.fix ?? ""}`));
  }
}

const theme = localStorage.getItem("exesys.theme");
if (theme) document.documentElement.dataset.theme = theme;
given.value = token();
given.addEventListener("change", () => {
  keep(given.value.trim());
  load();
});
find.addEventListener("input", filter);
document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", jump);
const where = await (await fetch("/where.json")).json();
begin(where.rest, async () => "");
load();
