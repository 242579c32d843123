// Questions that have to be answered first.

import { h } from "./dom.js";

function show(form, first) {
  const box = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  document.body.append(box);
  box.showModal();
  first.focus();
  return new Promise((done) => {
    box.addEventListener("close", () => { box.remove(); done(box.returnValue); }, { once: true });
  });
}

const title = (text) => h("h2", { id: "dialog-title" }, text);
const no = () => h("button", { type: "button", onclick: (event) => event.currentTarget.closest("dialog").close("") }, "Leave it");

/** Ask whether to do what cannot be undone. Gives true or false. */
export async function sure(question, text, word) {
  const yes = h("button", { value: "yes", className: "risk" }, word);
  const back = no();
  return (await show(h("form", { method: "dialog" }, title(question), h("p", {}, text), h("div", { className: "end" }, back, yes)), back)) === "yes";
}

/** Ask for a token. Gives it, or "". */
export async function askToken(why) {
  const field = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-label": "Token" });
  const form = h("form", { method: "dialog" }, title("A token, please"),
    h("p", {}, `REST says: ${why}`),
    h("p", { className: "soft" }, "`bin/exesys keys new read NAME` makes one. It is kept in this tab alone, until the tab is closed."),
    field, h("div", { className: "end" }, no(), h("button", { value: "yes", className: "main" }, "Go on")));
  return (await show(form, field)) === "yes" ? field.value.trim() : "";
}
