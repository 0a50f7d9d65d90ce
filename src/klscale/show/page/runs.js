/** Training runs: one at a time, with a checkpoint that is marked in its figure. */

import { data } from "./data.js";
import { byId, element, svgElement } from "./dom.js";

/** @type {{run: number, step: number, timer: ReturnType<typeof setInterval> | undefined}} */
const view = { run: 0, step: 0, timer: undefined };
const run = () => data.runs[view.run];
const last = () => run().steps.length - 1;

function readout() {
  const facts = run().readout[view.step].map(([term, text]) =>
    element("div", {}, element("dt", {}, term), element("dd", {}, text)),
  );
  byId("step-numbers").replaceChildren(element("dl", {}, facts));
  byId("step").setAttribute("aria-valuetext", `step ${run().steps[view.step]}`);
}

/** A line, or a dot where it has no length, in each panel. */
function mark() {
  const figure = byId(`run-${view.run}`).querySelector("svg");
  if (!figure) return;
  figure.querySelector(".checkpoint")?.remove();
  const made = svgElement("g", { class: "checkpoint" });
  for (const panel of run().marks) {
    const ends = panel[view.step];
    if (!ends) continue;
    const [x1, y1, x2, y2] = ends;
    made.append(svgElement("line", { class: x1 === x2 && y1 === y2 ? "dot" : "", x1, y1, x2, y2 }));
  }
  figure.append(made);
}

function setStep(at) {
  view.step = at;
  byId("step").value = String(at);
  readout();
  mark();
}

function stop() {
  clearInterval(view.timer);
  view.timer = undefined;
  byId("play").setAttribute("aria-pressed", "false");
  byId("play").textContent = "Play";
}

/** One checkpoint after the other; in jumps of a second where motion is not wanted. */
function play() {
  if (view.timer !== undefined) {
    stop();
    return;
  }
  if (view.step >= last()) setStep(0);
  byId("play").setAttribute("aria-pressed", "true");
  byId("play").textContent = "Pause";
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  view.timer = setInterval(
    () => {
      if (view.step >= last()) stop();
      else setStep(view.step + 1);
    },
    still ? 1000 : Math.max(120, 8000 / (last() + 1)),
  );
}

function setRun(n) {
  stop();
  byId(`run-${view.run}`).hidden = true;
  view.run = n;
  byId(`run-${n}`).hidden = false;
  byId("step").max = String(last());
  setStep(last());
}

export function startRuns() {
  if (!data.runs.length) return;
  byId("trajectory-run").addEventListener("change", ({ target }) => setRun(Number(target.value)));
  byId("step").addEventListener("input", ({ target }) => {
    stop();
    setStep(Number(target.value));
  });
  byId("play").addEventListener("click", play);
  setRun(0);
}
