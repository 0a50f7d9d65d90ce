/** The chosen pair on the scale: a line at its KL, a band over its 95 % interval. */

import { data, pair } from "./data.js";
import { byId, svgElement } from "./dom.js";
import { formatEstimate } from "./numbers.js";
import { onChange, selected } from "./selection.js";

const axis = /** @type {NonNullable<Report["ruler"]>} */ (data.ruler);

/** Where a KL lies across the figure; what lies beyond its axis is at the edge. */
function across(value) {
  const { left, right, low, high } = axis;
  const at = left + ((right - left) * (Math.log10(value) - low)) / (high - low);
  return Math.min(Math.max(at, left), right);
}

function mark(/** @type {number[]} */ [a, b]) {
  const figure = byId("ruler").querySelector("svg");
  figure.querySelector(".chosen-pair")?.remove();
  const found = b === undefined ? null : pair(a, b);
  if (!found?.on_scale) return;
  const { top, bottom, left, right } = axis;
  const x = across(found.on_scale);
  const same = found.on_scale === found.kl;
  const made = svgElement("g", { class: "chosen-pair" });
  if (found.interval && same) {
    const [from, to] = found.interval.map(across);
    made.append(svgElement("rect", { x: from, y: top, width: to - from, height: bottom - top }));
  }
  made.append(svgElement("line", { x1: x, x2: x, y1: top, y2: bottom }));
  const anchor = x < left + 50 ? "start" : x > right - 50 ? "end" : "middle";
  const text = svgElement("text", { x, y: top - 3, "text-anchor": anchor });
  const by = same ? "" : ` by ${data.place.by}`;
  text.textContent = `this pair${by}: ${formatEstimate(found.on_scale, same ? found.standard_error : null)}`;
  made.append(text);
  figure.append(made);
}

export function startRuler() {
  if (!data.ruler) return;
  mark(selected());
  onChange(mark);
}
