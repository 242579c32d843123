// Keys: g and a letter go to a page, / to the search field, ? to the list of them.

/** What the keys do, for the help page. */
export const KEYS = [
  ["g o", "#/", "Overview"], ["g j", "#/jobs", "Jobs"], ["g s", "#/send", "Send"], ["g f", "#/dead", "Failed jobs"],
  ["g q", "#/queues", "Queues"], ["g w", "#/workers", "Workers"], ["g r", "#/runners", "Runners"],
  ["g t", "#/timers", "Timers"], ["g a", "#/apps", "Application servers"], ["?", "#/help", "Help"],
];
const WITHIN_MS = 1200;

const typing = (element) => element.matches("input, textarea, select") || element.closest("dialog");

/** Begin to listen. */
export function listen() {
  let first = "";
  let at_ms = 0;
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target.matches("input[type=search]")) event.target.blur();
    if (typing(event.target)) return;
    if (event.key === "/") {
      const field = document.querySelector("main input[type=search]");
      if (field) { event.preventDefault(); field.focus(); }
      return;
    }
    const whole = first && event.timeStamp - at_ms < WITHIN_MS ? `${first} ${event.key}` : event.key;
    const found = KEYS.find(([keys]) => keys === whole);
    first = event.key === "g" ? "g" : "";
    at_ms = event.timeStamp;
    if (found) {
      event.preventDefault();
      location.hash = found[1];
      document.getElementById("content").focus();
    }
  });
}
