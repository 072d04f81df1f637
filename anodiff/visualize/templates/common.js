"use strict";
// What every page's script opens with: how elements are found, and the theme.
const root = document.documentElement;
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

// Theme: the system's until the button is pressed.
const theme = $("#theme"), dark = matchMedia("(prefers-color-scheme: dark)");
if (theme) {
  const other = () => ((root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark" ? "light" : "dark");
  const nameTheme = () => { theme.textContent = other() === "dark" ? "Dark view" : "Light view"; };
  theme.addEventListener("click", () => { root.dataset.theme = other(); nameTheme(); });
  dark.addEventListener("change", nameTheme);
  theme.hidden = false;
  nameTheme();
}
