/** The order of things: the answer and the map first, figures when they come near. */

import { data, pair } from "./data.js";
import { byId } from "./dom.js";
import { startDownloads } from "./downloads.js";
import { startHeat } from "./heat.js";
import { startMap } from "./map.js";
import { formatEstimate, general } from "./numbers.js";
import { startPanel } from "./panel.js";
import { drawAll, drawWhenNear, fitTo, hideCard, redrawAll } from "./plots.js";
import { startRuler } from "./ruler.js";
import { startRuns } from "./runs.js";
import { clear, onChange, select, selected } from "./selection.js";
import { startTables } from "./tables.js";

const folds = () => /** @type {NodeListOf<HTMLDetailsElement>} */ (document.querySelectorAll("section > details"));

/** The section that an address names is open. */
function unfold() {
  const fold = document.querySelector(`${location.hash || "#none"} > details`);
  if (fold instanceof HTMLDetailsElement) fold.open = true;
}

/** The theme, kept where pages from disk may keep anything. */
function startTheme() {
  const choice = byId("theme");
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
  };
  try {
    choice.value = localStorage.getItem("klscale-theme") ?? "auto";
  } catch {
    choice.value = "auto";
  }
  show(choice.value);
  choice.addEventListener("change", () => {
    try {
      localStorage.setItem("klscale-theme", choice.value);
    } catch {
      // kept until the page closes
    }
    show(choice.value);
    redrawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
  window.addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    show("light");
    for (const fold of folds()) fold.open = true;
    redrawAll();
    drawAll();
    fitTo(670);
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    show(choice.value);
    redrawAll();
    fitTo(null);
  });
}

startTheme();
startPanel();
startRuler();
startMap();
startHeat();
startRuns();
startTables();
startDownloads();
unfold();
drawWhenNear();
window.addEventListener("hashchange", unfold);
document.querySelector("nav")?.addEventListener("click", () => setTimeout(unfold)); // an address that is there already
document.addEventListener("scroll", hideCard, { passive: true });
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  hideCard();
  if (selected().length) clear();
});

/** Everything is open and drawn. */
function showAll() {
  for (const fold of folds()) fold.open = true;
  return drawAll();
}

window.klscale = { data, pair, select, selected, clear, onChange, showAll, formatEstimate, general };
