// Light, dark, or as the system is.

const KEPT = "exesys.theme";
const NEXT = { "": "light", light: "dark", dark: "" };
const WORD = { "": "Theme: system", light: "Theme: light", dark: "Theme: dark" };

function apply(theme, button) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  button.textContent = WORD[theme];
}

/** Apply what was chosen, and let the button choose the next. */
export function begin() {
  const button = document.getElementById("theme");
  let theme = localStorage.getItem(KEPT) ?? "";
  if (!(theme in NEXT)) theme = "";
  apply(theme, button);
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    localStorage.setItem(KEPT, theme);
    apply(theme, button);
  });
}
