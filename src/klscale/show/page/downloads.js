/** Tables as CSV: those of Python as they came, the table of all pairs made here; figures as SVG and PNG. */

import { data, intervalAt, K, pairs } from "./data.js";
import { button, element } from "./dom.js";
import { downloadFigure } from "./plots.js";

/** A name in a CSV: quoted, and with an apostrophe where a spreadsheet would compute. */
function cell(text) {
  const safe = /^'*[=+\-@\t\r\n]/.test(text) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
}

/** What float32 holds, without the digits that it does not. */
const short = (value) => (value === undefined || Number.isNaN(value) ? "" : String(Number(value.toPrecision(7))));

/** All pairs, in parts that the browser joins: half a million pairs are no single string. */
function allPairs() {
  const bits = data.pairs.flag_texts;
  const head = ["a", "b", "kl", "standard_error", "interval_low", "interval_high", "n_texts", "whole_texts_kl"];
  const parts = [`${[...head, "estimator", ...bits.map(([, sentence]) => cell(sentence))].join(",")}\r\n`];
  const names = data.refs.map(cell);
  for (let i = 0, at = 0; i < K; i += 1) {
    const lines = [];
    for (let j = i + 1; j < K; j += 1, at += 1) {
      const [low, high] = intervalAt(at) ?? [NaN, NaN];
      const known = [pairs.value[at], pairs.standard_error[at], low, high, pairs.n_texts[at], pairs.whole_texts[at]];
      const figures = known.map(short);
      const flags = bits.map(([bit]) => (pairs.flags[at] & bit ? 1 : 0));
      const by = data.pairs.estimators[pairs.estimator[at]];
      lines.push(`${[names[i], names[j], ...figures, by, ...flags].join(",")}\r\n`);
    }
    parts.push(lines.join(""));
  }
  return parts;
}

/** Text to a file of this name. */
function give(parts, type, name) {
  const address = URL.createObjectURL(new Blob(parts, { type }));
  const link = element("a", { href: address, download: `klscale-${name}` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 30000);
}

function save(name) {
  give(name === "pairs" ? allPairs() : [data.files[name]], "text/csv;charset=utf-8", `${name}.csv`);
}

/** The figure of Python's in this part of the page: of several, the one that is shown. */
const drawingIn = (id) => [...document.querySelectorAll(`#${id} svg`)].find((one) => !one.closest("[hidden]"));

/** It as a file of its own: without the page its colours are those of paper. */
function saveDrawing(id) {
  const copy = /** @type {any} */ (drawingIn(id)?.cloneNode(true));
  if (!copy) return;
  const text = new XMLSerializer().serializeToString(copy).replace(/light-dark\((#\w+),\s*#\w+\)/g, "$1");
  give([text], "image/svg+xml", `${id}.svg`);
}

export function startDownloads() {
  const words = (text) => (text ?? "").split(" ").filter(Boolean);
  for (const box of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".downloads"))) {
    const tables = words(box.dataset.csv)
      .filter((name) => name === "pairs" || name in data.files)
      .map((name) => button(`CSV: ${name}`, () => save(name), { dataset: { download: name } }));
    const figures = words(box.dataset.plots).flatMap((id) =>
      ["svg", "png"].map((format) => button(format.toUpperCase(), () => downloadFigure(id, format))),
    );
    const drawings = words(box.dataset.drawings)
      .filter((id) => document.querySelector(`#${id} svg`))
      .map((id) => button("SVG", () => saveDrawing(id), { dataset: { drawing: id } }));
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Downloads");
    box.replaceChildren(element("span", { class: "quiet" }, "Download"), ...tables, ...drawings, ...figures);
  }
}
