/** The map of models, and the search. */

import { column, columnOf, columns, data, isNumeric, K, kl, printed, shown } from "./data.js";
import { button, byId, element, name, shorten } from "./dom.js";
import { count, counted, formatEstimate, general, isNumber } from "./numbers.js";
import {
  axis,
  colour,
  colourBar,
  draw,
  faded,
  hasWebGL,
  hover,
  isDrawn,
  label,
  layout,
  legend,
  logs,
  narrow,
  placeOf,
  plain,
  redraw,
  register,
  stepAt,
  textWidths,
  tint,
} from "./plots.js";
import { onChange, select, selected } from "./selection.js";

const found = /** @type {ModelMap} */ (data.map);
const added = new Set(found?.added ?? []);
const METHODS = [
  ["tsne", "t-SNE"],
  ["pca", "PCA"],
];
const CAMERA = { eye: { x: 1.5, y: 1.5, z: 1 } };
/** @type {{method: string, dimensions: number, colour: string, matches: Set<number> | null, waiting?: any}} */
const view = { method: "pca", dimensions: 2, colour: "", matches: null };

// ---------------------------------------------------------------------------------------------------- what is shown

function pointsOf(method, dimensions) {
  const points = method === "pca" ? found.pca : dimensions === 3 ? found.tsne3 : found.tsne2;
  return points && points[0].length >= dimensions ? points : null;
}

const points = () => pointsOf(view.method, view.dimensions);
const flat = () => view.dimensions === 2;

function coordinates(models) {
  const from = points() ?? [];
  const axes = ["x", "y", "z"].slice(0, view.dimensions);
  return Object.fromEntries(axes.map((axis, n) => [axis, models.map((i) => from[i]?.[n] ?? null)]));
}

const kind = () => (flat() ? "scatter" : "scatter3d");

function symbolOf(i, symbol) {
  if (!added.has(i)) return symbol;
  return !flat() && symbol === "cross" ? "circle-open" : `${symbol}-open`; // in 3-D there is no hollow cross
}

function opacityOf(i) {
  return !view.matches || view.matches.has(i) ? 0.92 : 0.1;
}

/** One trace of models. In 3-D opacity is per trace, so that dimming is in the colours. */
function trace(models, { name, colours, symbols, more = {}, showlegend = true }) {
  const dim = (i, tint) => (flat() || opacityOf(i) > 0.5 || typeof tint !== "string" ? tint : faded(tint, 0.12));
  const edge = colour("paper");
  const many = K > 300;
  return {
    type: kind(),
    mode: "markers",
    ...coordinates(models),
    customdata: models,
    hoverinfo: "none",
    name,
    showlegend,
    marker: {
      symbol: models.map((i, n) => symbolOf(i, symbols[n])),
      size: flat() ? (many ? 7 : 10) : many ? 4 : 6,
      color: Array.isArray(colours) ? models.map((i, n) => dim(i, colours[n])) : colours,
      ...(flat() ? { opacity: models.map(opacityOf) } : {}),
      line: { width: models.map((i) => (flat() && added.has(i) ? 2 : flat() ? 0.6 : 0)), color: edge },
      ...more,
    },
  };
}

/** The groups without a look of their own: each has one model, or is not among the commonest. */
const OTHERS = Symbol("others");

function categoryTraces(column) {
  const { looks, others } = data.models.legends[column.key] ?? { looks: {}, others: null };
  const groups = new Map();
  for (let i = 0; i < K; i += 1) {
    const value = column.values[i] ?? null;
    const group = value === null || Object.hasOwn(looks, value) ? value : OTHERS;
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(i);
  }
  // a trace's first model gives the legend its mark, which is hollow only where all were added
  for (const models of groups.values()) models.sort((one, other) => Number(added.has(one)) - Number(added.has(other)));
  const rank = (group) => (group === null ? 2 : group === OTHERS ? 1 : 0);
  const sorted = [...groups].sort(([one, a], [other, b]) => rank(one) - rank(other) || b.length - a.length);
  return sorted.map(([group, models]) => {
    const look = rank(group) ? null : looks[group];
    const colours = look ? tint(look) : colour("muted");
    return trace(models, {
      name: look ? label(look.name, narrow() ? 24 : 40) : group === OTHERS ? (others ?? "") : "not known",
      colours: models.map(() => colours),
      symbols: models.map(() => look?.symbol ?? (group === OTHERS ? "square" : "circle")),
    });
  });
}

/** A family's symbols stay where the colour is a number. */
function symbols(models) {
  const column = columns.find((one) => one.kind === "category" && data.models.legends[one.key]);
  const looks = column ? data.models.legends[column.key].looks : {};
  return models.map((i) => {
    const value = column?.values[i];
    return value && Object.hasOwn(looks, value) ? looks[value].symbol : "circle";
  });
}

/** Colours of numbers by their log, of steps by log(1 + step); `scale` is null for plain numbers. */
const SCALES = { log: "log", steps: "steps" };

function numberTraces(values, title, scale) {
  const usable = (value) => isNumber(value) && (scale !== "log" || value >= 0);
  const all = [...Array(K).keys()];
  const known = all.filter((i) => usable(values[i]));
  const unknown = all.filter((i) => !usable(values[i]));
  const plain = known.map((i) => values[i]);
  const shown = scale === "log" ? logs(plain) : scale === "steps" ? plain.map(stepAt) : plain;
  const bar = colourBar(title, shown, scale);
  const made = [
    trace(known, {
      name: "",
      showlegend: false,
      colours: shown,
      symbols: symbols(known),
      more: {
        ...bar,
        showscale: scale !== "log" || plain.some((value) => value > 0),
        line: { width: flat() ? 0.6 : 0, color: colour("muted") },
      },
    }),
  ];
  if (unknown.length) {
    made.push(
      trace(unknown, {
        name: view.colour === "kl" ? "A itself, or no texts in common" : "not known",
        colours: unknown.map(() => colour("muted")),
        symbols: unknown.map(() => (flat() ? "x" : "circle")),
      }),
    );
  }
  return made;
}

function modelTraces() {
  if (view.colour === "kl") {
    const [a] = selected();
    if (a === undefined) return categoryTraces({ key: "", values: [] });
    return numberTraces(
      [...Array(K).keys()].map((j) => (j === a ? null : kl(a, j))),
      "KL from A, bits/byte",
      "log",
    );
  }
  const column = columnOf(view.colour);
  if (!column) return categoryTraces({ key: "", values: [] });
  if (column.kind === "category") return categoryTraces(column);
  return numberTraces(column.values, label(column.title), SCALES[column.kind]);
}

const WIDTHS = [1, 2, 3.5, 5.5];

/** Training runs as threads; the width of a step is its KL, in four classes by its root. */
function threadTraces() {
  const threads = found.threads;
  const most = Math.max(...threads.flatMap((thread) => thread.kl.filter(isNumber)), 0);
  if (!(most > 0)) return [];
  const made = WIDTHS.map(() => /** @type {number[]} */ ([]));
  for (const { models, kl } of threads) {
    for (let n = 0; n + 1 < models.length; n += 1) {
      const width = Math.min(WIDTHS.length - 1, Math.floor(Math.sqrt((kl[n] ?? 0) / most) * WIDTHS.length));
      made[width].push(models[n], models[n + 1], -1);
    }
  }
  return made
    .map((models, n) => ({ models, n }))
    .filter(({ models }) => models.length)
    .map(({ models, n }) => ({
      type: kind(),
      mode: "lines",
      ...coordinates(models),
      hoverinfo: "skip",
      showlegend: n === 1,
      connectgaps: false,
      name: "training run",
      legendrank: 2000,
      line: { width: WIDTHS[n], color: flat() ? faded(colour("muted"), 0.55) : colour("muted") },
    }));
}

/** A and B stand apart, also where their marks lie on each other. */
function letterSides(chosen) {
  const [a, b] = (points() && coordinates(chosen).x) ?? [];
  return b === undefined ? ["top center"] : a <= b ? ["top left", "top right"] : ["top right", "top left"];
}

function chosenTraces() {
  const chosen = selected();
  const accent = colour("accent");
  if (!chosen.length) return [];
  return [
    {
      type: kind(),
      mode: "markers+text",
      ...coordinates(chosen),
      text: ["A", "B"].slice(0, chosen.length),
      hoverinfo: "skip",
      showlegend: false,
      textposition: letterSides(chosen),
      textfont: { size: 15, color: accent, weight: 700 },
      marker: { symbol: "circle-open", size: flat() ? 18 : 12, color: accent, line: { width: 2.5, color: accent } },
    },
  ];
}

const NAMED = 25;
const ROOM = 8; // pixels that a name may reach beyond the axes
const SLACK = 20; // square pixels that two names may share
const ROUNDS = 4; // in each, every name moves to where it covers the least of all others
/** Beside the mark first; the corners where nothing else is free. */
const SIDES = [
  "middle right",
  "middle left",
  "top center",
  "bottom center",
  "top right",
  "bottom right",
  "top left",
  "bottom left",
];

/** The box of a label at a side of a mark that reaches so far, in pixels: [left, top, right, bottom]. */
function labelBox(mark, width, side, reach) {
  const [x, y] = mark;
  const [vertical, horizontal] = side.split(" ");
  const left = horizontal === "right" ? x + reach : horizontal === "left" ? x - reach - width : x - width / 2;
  const top = vertical === "top" ? y - reach - 13 : vertical === "bottom" ? y + reach - 3 : y - 7;
  return [left, top, left + width, top + 14];
}

function overlap(one, other) {
  const [left, top, right, bottom] = one;
  const wide = Math.min(right, other[2]) - Math.max(left, other[0]);
  const high = Math.min(bottom, other[3]) - Math.max(top, other[1]);
  return wide > 0 && high > 0 ? wide * high : 0;
}

/**
 * Names beside the marks where models are few, each at the side where it covers the least. A name that would cover
 * another one is left out, those of the chosen pair last.
 */
function nameTraces() {
  if (!flat() || K > NAMED || narrow()) return [];
  const models = [...Array(K).keys()];
  const { x, y } = coordinates(models);
  const room = byId("map-plot").getBoundingClientRect();
  const [width, height] = [room.width - 76, room.height - 110];
  const span = (values) => [Math.min(...values), Math.max(...values)];
  const [[west, east], [south, north]] = [span(x), span(y)];
  const unit = 0.85 * Math.min(width / (east - west || 1), height / (north - south || 1));
  const marks = models.map((i) => [
    width / 2 + unit * (x[i] - (west + east) / 2),
    height / 2 - unit * (y[i] - (south + north) / 2),
  ]);
  const chosen = selected();
  const ring = (i) => (chosen.includes(i) ? 11 : 6);
  const around = (mark, reach) => [mark[0] - reach, mark[1] - reach, mark[0] + reach, mark[1] + reach];
  const taken = marks.map((mark, i) => around(mark, ring(i)));
  const near = marks.map((mark, i) => around(mark, ring(i) + 8)); // a name there could be taken for that mark's
  const letters = letterSides(chosen);
  taken.push(...chosen.map((i, n) => labelBox(marks[i], 12, letters[n], 13)));
  const widths = textWidths(data.labels, 11);
  const names = /** @type {number[][]} */ ([]);
  const sides = /** @type {string[]} */ ([]);
  for (let round = 0; round < ROUNDS; round += 1) {
    marks.forEach((mark, i) => {
      const boxes = SIDES.map((side) => labelBox(mark, widths[i], side, ring(i) + 3));
      const cost = boxes.map((box, n) => {
        const outside = Math.max(0, -ROOM - box[0]) + Math.max(0, box[2] - width - ROOM);
        const covered = (sum, other) => sum + overlap(box, other);
        const others = names.filter((_, k) => k !== i);
        const elsewhere = near.filter((_, k) => k !== i).reduce(covered, 0);
        const marked = taken.filter((_, k) => k !== i).reduce(covered, 0);
        return 20 * outside + 3 * n + marked + 0.3 * elsewhere + others.reduce(covered, 0);
      });
      const best = cost.indexOf(Math.min(...cost));
      [names[i], sides[i]] = [boxes[best], SIDES[best]];
    });
  }
  const outside = (box) => box[0] < -ROOM || box[2] > width + ROOM;
  const covered = (i) => names.reduce((sum, box, k) => (k === i ? sum : sum + overlap(names[i], box)), 0);
  const first = (i) => (chosen.includes(i) ? -1 : covered(i));
  const named = /** @type {number[]} */ ([]);
  for (const i of [...models].sort((one, other) => first(one) - first(other))) {
    const free = !outside(names[i]) && named.every((k) => overlap(names[i], names[k]) <= SLACK);
    if (free || chosen.includes(i)) named.push(i);
  }
  return [
    {
      type: kind(),
      mode: "markers+text",
      x,
      y,
      marker: { size: models.map((i) => 2 * ring(i)), opacity: 0 }, // a mark that is not seen keeps the text off the one that is
      text: models.map((i) => (named.includes(i) ? label(data.labels[i]) : "")),
      textposition: sides,
      cliponaxis: false,
      textfont: { size: 11, color: models.map((i) => colour(opacityOf(i) < 0.5 ? "grid" : "muted")) },
      hoverinfo: "skip",
      showlegend: false,
    },
  ];
}

function titles() {
  if (view.method === "tsne") return ["t-SNE 1", "t-SNE 2", "t-SNE 3"];
  const { share, unit } = found;
  const part = (n) => (isNumber(share[n]) ? ` (${(100 * share[n]).toFixed(0)} %${flat() ? " of variance" : ""})` : "");
  return [0, 1, 2].map((n) => `component ${n + 1}${part(n)}${flat() ? `, ${plain(unit)}` : ""}`); // little room in 3-D
}

function axesLayout() {
  const [x, y, z] = titles();
  const bare = view.method === "tsne" ? { showticklabels: false, ticks: "" } : {}; // its units are arbitrary
  if (flat()) {
    // The margin on the left is fixed: with equal units on both axes it would follow the ticks, and the ticks it.
    return { xaxis: axis(x, bare), yaxis: axis(y, { scaleanchor: "x", automargin: false, ...bare }) };
  }
  const one = (text) => ({
    title: { text, font: { size: 11 } },
    gridcolor: colour("grid"),
    color: colour("muted"),
    showbackground: false,
    zeroline: false,
    showspikes: false,
    ...bare,
  });
  return {
    scene: { xaxis: one(x), yaxis: one(y), zaxis: one(z), aspectmode: "data", dragmode: "orbit", camera: CAMERA },
  };
}

function make() {
  const coarse = matchMedia("(pointer: coarse)").matches;
  const base = {
    ...axesLayout(),
    uirevision: `${view.method}${view.dimensions}`,
    legend: legend(narrow() ? {} : { maxheight: 0.3 }),
    margin: { l: flat() ? 64 : 44, r: 12, t: 12, b: 60 },
  };
  return {
    data: [...threadTraces(), ...modelTraces(), ...nameTraces(), ...chosenTraces()],
    layout: layout(coarse && !flat() ? { ...base, dragmode: "orbit" } : base),
  };
}

function describe() {
  const method = METHODS.find(([key]) => key === view.method)?.[1];
  const chosen = selected().map((i, n) => `${"AB"[n]} is ${data.names[i]}`);
  return `Map of ${counted(K, "model")}: ${method}, ${view.dimensions}-D. ${chosen.join("; ")}`;
}

// -------------------------------------------------------------------------------------------------- under the pointer

function attributes(i) {
  return columns.map((column) => [column, shown(column, i)]).filter(([, text]) => text !== null);
}

const REACH = 20; // pixels from a mark

/** The model whose mark is nearest to an event, of those that the legend shows; null where none is near. */
function modelAt(event) {
  const { x, y, xaxis, yaxis } = placeOf("map-plot", event);
  let [nearest, least] = [null, REACH];
  for (const trace of byId("map-plot")._fullData) {
    if (trace.visible !== true || !trace.customdata) continue;
    trace.customdata.forEach((i, n) => {
      const distance = Math.hypot(xaxis.d2p(trace.x[n]) - x, yaxis.d2p(trace.y[n]) - y);
      if (distance < least) [nearest, least] = [i, distance];
    });
  }
  return nearest;
}

function card({ customdata }, event) {
  const i = flat() ? modelAt(event) : customdata;
  if (!Number.isInteger(i)) return null;
  const chosen = selected();
  const rows = attributes(i).map(([column, text]) => [
    element("dt", {}, column.title),
    element("dd", {}, name(shorten(text, 60))),
  ]);
  if (chosen.length && chosen[0] !== i) {
    rows.push([element("dt", {}, "KL from A"), element("dd", {}, `${printed(chosen[0], i)} bits/byte`)]);
  }
  const off = found.off_map[i];
  return [
    element("strong", {}, name(shorten(data.names[i], 120))),
    element("dl", {}, rows),
    off ? element("p", { class: "warning" }, off) : null,
  ].filter(Boolean);
}

// -------------------------------------------------------------------------------------------------------- the controls

function options(select, rows) {
  select.replaceChildren(...rows.map(([value, text]) => element("option", { value }, text)));
}

function fillControls() {
  const methods = METHODS.filter(([key]) => pointsOf(key, 2));
  options(byId("map-method"), methods);
  view.method = found.method;
  byId("map-method").value = view.method;
  options(byId("map-colour"), [
    ...columns.filter((column) => column.kind !== "text").map((column) => [column.key, column.title]),
    ["kl", "KL from A"],
  ]);
  view.colour =
    columns.find((column) => column.key === "family" && column.values.some(Boolean))?.key ??
    columns.find((column) => column.kind === "category" && column.values.some(Boolean))?.key ??
    columns[0]?.key ??
    "";
  byId("map-colour").value = view.colour;
  fillDimensions();
}

function fillDimensions() {
  const third = byId("map-dimensions").querySelector("[value='3']");
  third.disabled = !pointsOf(view.method, 3);
  if (third.disabled) view.dimensions = 2;
  byId("map-dimensions").value = String(view.dimensions);
}

function say(text) {
  byId("map-message").textContent = text;
  byId("map-message").hidden = !text;
}

function setDimensions(wanted) {
  const possible = wanted === 2 || hasWebGL();
  view.dimensions = possible ? wanted : 2;
  byId("map-dimensions").value = String(view.dimensions);
  say(possible ? "" : "This browser has no WebGL, which three dimensions need: the map stays in two.");
}

function note() {
  const notes = found.notes.filter((text) => view.method === "tsne" || !text.startsWith("t-SNE"));
  if (view.method === "tsne" && isNumber(found.perplexity)) {
    notes.unshift(
      `t-SNE, perplexity ${general(found.perplexity)}: it keeps neighbours; distances between groups mean little.`,
    );
  }
  if (view.method === "pca") notes.unshift(`Distances on the map are √KL, as far as two components show them.`);
  if (found.threads.length)
    notes.push("Lines are training runs; a wider line is a larger KL between neighbouring checkpoints.");
  if (added.size)
    notes.push(`Hollow: ${counted(added.size, "model")} placed on the map later, without moving the others.`);
  if (view.colour === "kl" && !selected().length)
    notes.unshift("Choose a model to colour the others by their KL from it.");
  byId("map-note").textContent = notes.join(" ");
}

const refresh = () => {
  note();
  return redraw("map-plot");
};

function zoom(factor) {
  const gd = byId("map-plot");
  if (!isDrawn("map-plot")) return;
  if (!flat()) {
    const { eye } = gd._fullLayout.scene.camera;
    Plotly.relayout(gd, { "scene.camera.eye": { x: eye.x * factor, y: eye.y * factor, z: eye.z * factor } });
    return;
  }
  const change = {};
  for (const axis of ["xaxis", "yaxis"]) {
    const [low, high] = gd._fullLayout[axis].range;
    const half = ((high - low) / 2) * factor;
    change[`${axis}.range`] = [(low + high) / 2 - half, (low + high) / 2 + half];
  }
  Plotly.relayout(gd, change);
}

function reset() {
  if (!isDrawn("map-plot")) return;
  Plotly.relayout(
    byId("map-plot"),
    flat() ? { "xaxis.autorange": true, "yaxis.autorange": true } : { "scene.camera": CAMERA },
  );
}

function listen() {
  const on = (id, event, listener) => byId(id).addEventListener(event, listener);
  on("map-method", "change", (event) => {
    view.method = event.target.value;
    fillDimensions();
    refresh();
  });
  on("map-dimensions", "change", (event) => {
    setDimensions(Number(event.target.value));
    refresh();
  });
  on("map-colour", "change", (event) => {
    view.colour = event.target.value;
    refresh();
  });
  on("map-closer", "click", () => zoom(1 / 1.4));
  on("map-farther", "click", () => zoom(1.4));
  on("map-reset", "click", reset);
}

// ---------------------------------------------------------------------------------------------------------- the search

const LISTED = 40;
const searchable = (found ? [...Array(K).keys()] : []).map((i) =>
  [data.names[i], ...columns.filter((column) => !isNumeric(column)).map((column) => column.values[i] ?? "")]
    .join("\n")
    .toLowerCase(),
);

/** Models of the store that are not on this page. */
const others = data.others && {
  ...data.others,
  searchable: data.others.names.map((one) => one.toLowerCase()),
  nearest: column(data.others.nearest),
  kl: column(data.others.kl),
  standard_error: column(data.others.standard_error),
};

/** Those that hold all words, and where the nearest to each is on this page. */
function elsewhere(words, most) {
  if (!others || !words.length) return { count: 0, results: [] };
  const matching = [...others.searchable.keys()].filter((i) =>
    words.every((word) => others.searchable[i].includes(word)),
  );
  const results = matching.slice(0, most).map((i) => {
    const near = others.nearest[i];
    const far = formatEstimate(others.kl[i], others.standard_error[i]);
    const text = ` is not on this page; nearest here, at KL ${far} bits/byte by whole texts: `;
    return element(
      "li",
      {},
      name(others.names[i]),
      text,
      button(name(data.names[near]), () => select(near)),
    );
  });
  return { count: matching.length, results };
}

function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const matching = words.length
    ? [...searchable.keys()].filter((i) => words.every((word) => searchable[i].includes(word)))
    : [];
  view.matches = words.length ? new Set(matching) : null;
  const matches = `${count(matching.length)} ${matching.length === 1 ? "match" : "matches"}`;
  const more = elsewhere(words, LISTED - Math.min(matching.length, LISTED / 2));
  const beside = others ? `, ${count(more.count)} elsewhere in the store` : "";
  byId("search-count").textContent = words.length ? matches + beside : "";
  const results = matching.slice(0, LISTED).map((i) =>
    element(
      "li",
      {},
      button(name(data.names[i]), () => select(i)),
    ),
  );
  if (matching.length > LISTED)
    results.push(element("li", { class: "quiet" }, `and ${count(matching.length - LISTED)} more`));
  results.push(...more.results);
  if (more.count > more.results.length)
    results.push(element("li", { class: "quiet" }, `and ${count(more.count - more.results.length)} more elsewhere`));
  byId("search-results").replaceChildren(...results);
  byId("search-results").hidden = !results.length;
  clearTimeout(view.waiting);
  view.waiting = setTimeout(refresh, 60); // the list at once, the map when typing pauses
  return matching;
}

function listenToSearch() {
  const field = byId("search");
  let matching = [];
  field.addEventListener("input", () => {
    matching = search(field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      matching = search(field.value);
      if (matching.length) select(matching[0]);
      event.preventDefault();
    } else if (event.key === "Escape" && field.value) {
      field.value = "";
      matching = search("");
      event.stopPropagation();
      event.preventDefault();
    }
  });
}

export function startMap() {
  if (!found) return;
  fillControls();
  note();
  listen();
  listenToSearch();
  register("map-plot", {
    make,
    label: describe,
    on: {
      ...hover(card),
      plotly_click: ({ points: [point] }) => flat() || select(point.customdata),
    },
    click: (event) => flat() && select(modelAt(event)),
  });
  onChange(refresh);
  draw("map-plot");
}
