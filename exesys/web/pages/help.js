// Where things are, what to type, and what the keys do.

import { h } from "../dom.js";
import { KEYS } from "../keyboard.js";

const ID = "16fd2706-8baf-433b-82eb-8c7fada847da";

export default function help(page, { where }) {
  page.head("Help");
  const command = `curl -H "Content-type: application/json" \\
  -X POST ${where.rest}/sys_cmd -d \\
  '{"from":"testclient","to":"testjob","cmd":"test_cmd","data":"senatoremonti","job_id":"${ID}"}'`;
  const shell = "bin/exesys status\nbin/exesys submit test_cmd '\"senatoremonti\"' --wait 5\nbin/exesys logs worker\nbin/exesys down";
  const card = (title, ...content) => h("section", { className: "card" }, h("header", {}, h("h2", {}, title)), content);
  const facts = (rows) => h("dl", { className: "facts" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  page.root.append(
    card("Try it", h("pre", { className: "value", tabindex: 0 }, command), h("p", { className: "soft" }, "Sent again, it is not run twice: the answer is its result.")),
    card("From a shell", h("pre", { className: "value", tabindex: 0 }, shell)),
    card("Where things are", facts([
      ["REST", h("span", {}, h("code", {}, where.rest), " ", h("a", { href: "/api.html" }, "what can be asked there"))], ["Bus", h("code", {}, where.bus)], ["Home", h("code", {}, where.home)],
      ["Your own pages", where.site ? h("a", { href: "/site/" }, where.site) : "none; set [web] path to a directory"],
      ["Version", where.version],
    ])),
    card("Keys", facts([
      ...KEYS.map(([keys, href, name]) => [h("span", {}, keys.split(" ").map((key) => [h("kbd", {}, key), " "]).flat()), h("a", { href }, name)]),
      [h("kbd", {}, "/"), "to the search field"],
      [h("span", {}, h("kbd", {}, "↓"), " ", h("kbd", {}, "↑"), " ", h("kbd", {}, "Enter")), "in a table: go, and open"],
    ])));
}
