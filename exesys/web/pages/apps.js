// Application servers: whether they are up, and why not.

import { get } from "../api.js";
import { h, put, stateOf } from "../dom.js";
import { Table } from "../table.js";

const AGAIN_MS = 3000;

export default function apps(page) {
  page.head("Application servers");
  const why = h("section", { className: "card problem", hidden: true });
  const table = new Table("Application servers", [
    { title: "Server", value: (row) => row.name },
    { title: "State", width: "110px", value: (row) => row.state, alike: true, render: (row) => stateOf(row.state) },
    { title: "Class", wide: true, value: (row) => row.class ?? "" },
    { title: "Instances", width: "90px", num: true, value: (row) => (Array.isArray(row.instances) ? row.instances.length : row.instances ?? "") },
    { title: "Methods", width: "30%", wide: true, value: (row) => methods(row) },
    { title: "", value: (row) => row.reason ?? "" },
  ], { key: (row) => row.name, open: show, empty: "None is declared: [appserver:NAME] in the ini does." });
  page.root.append(table.element, why);

  async function show(row) {
    const { traceback, reason } = await get(`/apps/${encodeURIComponent(row.name)}`, page.signal);
    why.hidden = !traceback && !reason;
    put(why, h("header", {}, h("h2", {}, row.name)), h("pre", { className: "value", tabindex: 0 }, traceback || reason));
  }

  page.again(async (signal) => table.show((await get("/apps", signal)).apps), AGAIN_MS);
  page.until(() => table.close());
}

function methods(row) {
  const named = Array.isArray(row.methods) ? row.methods.map((each) => each.name ?? each) : Object.keys(row.methods ?? {});
  return named.join(", ");
}
