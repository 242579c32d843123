// As whom this page asks: what a role may not do is not offered.

import * as api from "./api.js";
import { h, put } from "./dom.js";

const RANK = { read: 1, submit: 2, admin: 3 };
let me = { role: "read", name: "" };

/** Ask REST who we are. */
export async function learn() {
  me = await api.get("/whoami");
}

/** Whether we may do what needs this role. */
export const may = (role) => RANK[me.role] >= RANK[role];

/** Give `what()` only to whom may do it. */
export const allowed = (role, what) => (may(role) ? what() : null);

/** Show it in the corner, and hide the pages that are not for this role. */
export function show() {
  const leave = api.token() && h("button", { type: "button", className: "plain", onclick: () => { api.keep(""); location.reload(); } }, "Forget the token");
  put(document.getElementById("who"), me.name && h("span", {}, `${me.name} (${me.role}) `), leave);
  for (const link of document.querySelectorAll("nav a[data-role]")) link.hidden = !may(link.dataset.role);
}
