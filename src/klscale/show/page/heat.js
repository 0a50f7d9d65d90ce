/** The heat map of all pairs under their tree; for many models a part of it, or groups. */

import { data, K, kl, nearest, pair, pairs, printed } from "./data.js";
import { byId, element, name, shorten } from "./dom.js";
import { count, counted, general } from "./numbers.js";
import { axis, colour, colourBar, hover, label, layout, logs, narrow, placeOf, redraw, register } from "./plots.js";
import { both, onChange, selected } from "./selection.js";

const WHOLE = 300; // beyond this many models single cells can neither be seen nor drawn fast
const AROUND = 60;
const GROUPS = 80;
const NAMED = 60;
const view = { kind: K > WHOLE ? "groups" : "whole" };
const order = data.pairs.order;
const merges = data.pairs.merges;
let cells = null; // what is drawn: groups of models in order, and median KL between them

// ----------------------------------------------------------------------------------------------------------- the tree

/** The tree as [x, height] polylines over leaves at `placeOf(leaf)`; leaves that have no place are left out. */
function branches(placeOf) {
  const at = [...Array(K).keys()].map((leaf) => (placeOf(leaf) === undefined ? null : [placeOf(leaf), 0]));
  const x = [];
  const y = [];
  for (const [a, b, height] of merges) {
    const [one, other] = [at[a], at[b]];
    if (one && other && one[0] !== other[0]) {
      x.push(one[0], one[0], other[0], other[0], null);
      y.push(one[1], height, height, other[1], null);
      at.push([(one[0] + other[0]) / 2, height]);
    } else at.push(one ?? other);
  }
  return { x, y };
}

/** The leaves in `count` groups: the tree cut where its highest branches join. */
function cut(count) {
  const owner = new Map(); // of a leaf or a merge below the cut: the highest merge below the cut that holds it
  for (let n = merges.length - count; n >= 0; n -= 1) {
    const highest = owner.get(K + n) ?? K + n;
    owner.set(merges[n][0], highest);
    owner.set(merges[n][1], highest);
  }
  return [...Map.groupBy(order, (leaf) => owner.get(leaf) ?? leaf).values()];
}

// ---------------------------------------------------------------------------------------------------------- the cells

function median(values) {
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function between(one, other) {
  const values = [];
  for (const i of one) for (const j of other) if (i !== j && !Number.isNaN(kl(i, j))) values.push(kl(i, j));
  return values.length ? median(values) : null;
}

function groupsToShow() {
  const [a] = selected();
  if (view.kind === "around" && a !== undefined) {
    const near = new Set([a, ...nearest(a, AROUND)]);
    return order.filter((i) => near.has(i)).map((i) => [i]);
  }
  return view.kind === "groups" && merges.length ? cut(GROUPS) : order.map((i) => [i]);
}

function compute() {
  const groups = groupsToShow();
  const size = groups.length;
  const median2 = Array.from({ length: size }, () => new Array(size).fill(null));
  for (let r = 0; r < size; r += 1) {
    for (let c = 0; c <= r; c += 1) {
      const alone = r === c && groups[r].length === 1;
      median2[r][c] = alone ? null : between(groups[r], groups[c]);
      median2[c][r] = median2[r][c];
    }
  }
  return { groups, value: median2 };
}

const groupName = (/** @type {number[]} */ [first, ...others]) =>
  others.length ? `${others.length + 1}: ${data.brief[first]}, …` : data.brief[first];

function outline() {
  const [a, b] = selected();
  const place = (i) => cells.groups.findIndex((group) => group.includes(i));
  if (b === undefined || place(a) < 0 || place(b) < 0) return [];
  const line = { color: colour("accent"), width: 2.5 };
  return [
    [a, b],
    [b, a],
  ].map(([r, c]) => ({
    type: "rect",
    x0: place(c) - 0.5,
    x1: place(c) + 0.5,
    y0: place(r) - 0.5,
    y1: place(r) + 0.5,
    line,
  }));
}

function make() {
  cells = compute();
  const { groups, value } = cells;
  const flat = logs(value.flat());
  const z = value.map((row, r) => row.map((_, c) => flat[r * row.length + c]));
  const places = [...groups.keys()];
  const bar = colourBar(
    "KL, bits/byte",
    flat.filter((one) => one !== null),
    "log",
  );
  const named = groups.length <= (narrow() ? 16 : NAMED);
  const ticks = named
    ? {
        tickmode: "array",
        tickvals: places,
        ticktext: groups.map((group) => label(groupName(group), narrow() ? 14 : 30)),
        ticks: "",
      }
    : { showticklabels: false, ticks: "" };
  const whereIs = new Map(groups.flatMap((group, n) => group.map((i) => [i, n])));
  const range = [-0.5, groups.length - 0.5];
  const { x, y } = branches((leaf) => whereIs.get(leaf));
  const quiet = { showgrid: false, showline: false };
  return {
    data: [
      {
        type: "heatmap",
        z,
        colorscale: bar.colorscale,
        zmin: bar.cmin,
        zmax: bar.cmax,
        showscale: value.flat().some((one) => one > 0),
        colorbar: narrow() ? bar.colorbar : { ...bar.colorbar, len: 0.6, y: 0.4 },
        hoverinfo: "none",
        hoverongaps: false,
        xgap: groups.length < 40 ? 1 : 0,
        ygap: groups.length < 40 ? 1 : 0,
      },
      {
        x,
        y,
        yaxis: "y2",
        mode: "lines",
        hoverinfo: "skip",
        showlegend: false,
        connectgaps: false,
        line: { width: 1, color: colour("muted") },
      },
    ],
    layout: layout({
      xaxis: axis("", { ...quiet, ...ticks, tickangle: -45, range, constrain: "domain" }),
      yaxis: axis("", { ...quiet, ...ticks, range: [...range].reverse(), domain: [0, 0.84] }),
      yaxis2: axis("√KL", {
        showgrid: false,
        domain: [0.86, 1],
        nticks: 3,
        fixedrange: true,
        rangemode: "tozero",
      }),
      shapes: outline(),
      showlegend: false,
      margin: narrow() ? { l: 40, r: 10, t: 60, b: 10 } : { l: 60, r: 10, t: 10, b: 60 },
    }),
  };
}

function card({ pointNumber }) {
  if (!Array.isArray(pointNumber)) return null;
  const [r, c] = pointNumber;
  const [one, other] = [cells.groups[r], cells.groups[c]];
  if (cells.value[r][c] === null) return null;
  const named = (group) =>
    element(
      "p",
      {},
      name(shorten(data.names[group[0]], 90)),
      group.length > 1 ? ` and ${count(group.length - 1)} near it` : null,
    );
  if (one.length === 1 && other.length === 1) {
    return [
      named(one),
      named(other),
      element("p", {}, `KL ${printed(one[0], other[0])} bits/byte`),
      ...(pair(one[0], other[0])?.flags ?? []).map((sentence) => element("p", { class: "warning" }, sentence)),
    ];
  }
  const number = r === c ? (one.length * (one.length - 1)) / 2 : one.length * other.length;
  return [
    named(one),
    named(other),
    element("p", {}, `median KL ${general(cells.value[r][c])} bits/byte of ${counted(number, "pair")}`),
  ];
}

function choose(event) {
  const { x, y, xaxis, yaxis } = placeOf("heat-plot", event);
  const [one, other] = [yaxis.p2d(y), xaxis.p2d(x)].map((at) => cells.groups[Math.round(at)]);
  if (one?.length === 1 && other?.length === 1 && one !== other) both(one[0], other[0]);
}

/** What the colours do not say of a KL of 0, which no log axis holds. */
function aboutZeros() {
  const values = Array.from(pairs.value);
  if (!values.includes(0)) return "";
  return values.some((value) => value > 0)
    ? "A KL of 0 is drawn as dark as the smallest other one."
    : "Every known KL is 0: these models agree on all texts.";
}

const zeros = aboutZeros();

function note() {
  const [a] = selected();
  const around = view.kind === "around" && a !== undefined;
  const part = around
    ? `A, ${shorten(data.names[a], 60)}, and the ${AROUND} models nearest to it, of ${count(K)}.`
    : `${count(K)} models are too many for single cells: the tree is cut into ${GROUPS} groups, and a colour is the median KL between two of them.`;
  byId("heat-note").textContent = [K > WHOLE ? part : "", zeros].filter(Boolean).join(" ");
  byId("heat-how").textContent = K <= WHOLE || around ? "A click on a cell chooses its pair." : "";
}

/** With many models the heat map follows the first chosen one, where that is asked for. */
function follow() {
  const [a] = selected();
  const around = byId("heat-view").querySelector("[value='around']");
  if (around) {
    around.disabled = a === undefined;
    if (a === undefined) view.kind = "groups";
    byId("heat-view").value = view.kind;
  }
  note();
  redraw("heat-plot");
}

export function startHeat() {
  if (!byId("heat-plot")) return;
  if (K > WHOLE) {
    byId("heat-controls").hidden = false;
    byId("heat-view").replaceChildren(
      element("option", { value: "groups" }, `all models, in ${GROUPS} groups`),
      element("option", { value: "around" }, `A and its ${AROUND} nearest`),
    );
    byId("heat-view").addEventListener("change", (event) => {
      view.kind = event.target.value;
      follow();
    });
  }
  follow();
  register("heat-plot", {
    make,
    on: hover(card),
    click: choose,
    label: () =>
      `Heat map of KL between ${counted(K, "model")}, in bits per byte. The numbers of each pair are in its CSV.`,
  });
  onChange(follow);
}
