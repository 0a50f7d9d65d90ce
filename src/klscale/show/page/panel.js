/** The answer: the chosen pair in sentences; or one model and those nearest to it. */

import { columnOf, data, nearest, pair, printed, shown } from "./data.js";
import { button, byId, copier, element, name } from "./dom.js";
import { count, formatEstimate, interval } from "./numbers.js";
import { asB, clear, onChange, selected, swap } from "./selection.js";

const NEAREST = 8;

/** A model's name, and how far off the map it lies if it was placed there later. */
function chosen(letter, i) {
  const off = data.map?.off_map[i];
  return [
    element("p", { class: "chosen" }, element("span", { class: "letter" }, letter), name(data.names[i])),
    off ? element("p", { class: "warning" }, `Placed on the map later. ${off}`) : null,
  ];
}

function bits(i) {
  const column = columnOf("bits_per_byte");
  return column ? `${shown(column, i)} bits/byte` : "n/a";
}

const buttons = (two) =>
  element("div", { class: "buttons" }, two ? button("Swap A and B", swap) : null, button("Clear", clear));

function one(a) {
  const rows = nearest(a, NEAREST).map((j) =>
    element(
      "tr",
      {},
      element(
        "td",
        {},
        button(name(data.names[j]), () => asB(j), { class: "link" }),
      ),
      element("td", { class: "number" }, printed(a, j)),
    ),
  );
  return [
    chosen("A", a),
    element("dl", {}, element("dt", {}, "Predicts the texts with"), element("dd", {}, bits(a))),
    element("p", {}, "Choose a second model for the answer: on the map, in a table, or among the nearest."),
    element("table", {}, element("caption", {}, "Nearest to A, KL ± SE in bits/byte"), element("tbody", {}, rows)),
    buttons(false),
  ];
}

/** The pair's setting in words, where its KL lies on the scale, and which of the two is better. */
function isThatALot(found) {
  if (found.kl === null) return element("p", { class: "warning" }, "The two have no texts in common.");
  return [
    found.setting ? element("p", { id: "pair-setting" }, found.setting) : null,
    found.placed && found.kl > 0 && data.place.holds
      ? element("p", {}, "That is ", element("span", { id: "pair-place" }, found.placed), ".")
      : element("p", { id: "pair-place" }, found.placed ?? ""),
    found.better ? element("p", { id: "pair-better" }, whichIsBetter(found.better)) : null,
  ];
}

function whichIsBetter([place, words]) {
  return place === null ? `${words[0].toUpperCase()}${words.slice(1)}.` : `${"AB"[place]} ${words}.`;
}

function both(a, b) {
  const found = pair(a, b);
  if (!found) return [];
  const command = `${data.command} ${data.words[a]} ${data.words[b]}`;
  const ends = found.interval ? `${interval(found.interval)} bits/byte` : "n/a";
  const facts = [
    ["95 % interval", ends],
    ["Whole texts (published estimator)", formatEstimate(found.whole_texts, found.whole_texts_standard_error)],
    ["Texts", count(found.n_texts)],
    ["A predicts with", bits(a)],
    ["B predicts with", bits(b)],
  ];
  return [
    chosen("A", a),
    chosen("B", b),
    element(
      "p",
      { class: "big" },
      "KL ",
      element("strong", {}, formatEstimate(found.kl, found.standard_error)),
      " bits/byte",
      element("small", { id: "pair-estimator" }, ` by ${found.estimator}`),
    ),
    isThatALot(found),
    found.flags.map((sentence) => element("p", { class: "warning" }, `Careful: ${sentence}.`)),
    element(
      "details",
      { id: "pair-more" },
      element("summary", {}, "Interval, quality of each, command, swap"),
      element(
        "dl",
        {},
        facts.map(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]),
      ),
      element("div", { class: "command" }, element("code", {}, command), copier(command)),
      buttons(true),
    ),
  ];
}

function show(/** @type {number[]} */ [a, b]) {
  const box = byId("pair");
  const open = byId("pair-more")?.open;
  const found = b === undefined ? null : pair(a, b);
  const known = { a: data.names[a], b: data.names[b], kl: found?.kl, standardError: found?.standard_error };
  for (const [key, value] of Object.entries(known)) {
    if (value === undefined || value === null) delete box.dataset[key];
    else box.dataset[key] = String(value);
  }
  const empty = [element("p", {}, "Choose two models: on the map, from the search, or in the table of models.")];
  const focused = box.contains(document.activeElement);
  box.replaceChildren(
    ...(a === undefined ? empty : b === undefined ? one(a) : both(a, b)).flat(Infinity).filter(Boolean),
  );
  if (open && byId("pair-more")) byId("pair-more").open = true;
  if (focused) box.focus({ preventScroll: true }); // what was pressed is gone
}

export function startPanel() {
  show(selected());
  onChange(show);
}
