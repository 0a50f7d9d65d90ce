"use strict";

/** The heat map of all pairs under their tree; for many models a part of it, or groups. */
const heat = (() => {
  const { byId, element } = dom;
  const { data, K } = report;
  const WHOLE = 300; // beyond this many models single cells can neither be seen nor drawn fast
  const AROUND = 60;
  const GROUPS = 80;
  const NAMED = 60;
  const view = { kind: K > WHOLE ? "groups" : "whole" };
  const order = data.pairs?.order ?? [];
  const merges = data.pairs?.dendrogram?.merges ?? [];
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
    for (const i of one)
      for (const j of other) if (i !== j && !Number.isNaN(report.kl(i, j))) values.push(report.kl(i, j));
    return values.length ? median(values) : null;
  }

  function groupsToShow() {
    const [a] = selection.selected();
    if (view.kind === "around" && a !== undefined) {
      const near = new Set([a, ...report.nearest(a, AROUND).map(([j]) => j)]);
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

  const groupName = ([first, ...others]) =>
    others.length ? `${others.length + 1}: ${report.brief(first)}, …` : report.brief(first);

  function outline() {
    const [a, b] = selection.selected();
    const place = (i) => cells.groups.findIndex((group) => group.includes(i));
    if (b === undefined || place(a) < 0 || place(b) < 0) return [];
    const line = { color: plots.colour("accent"), width: 2.5 };
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
    const flat = plots.logs(value.flat());
    const z = value.map((row, r) => row.map((_, c) => flat[r * row.length + c]));
    const places = [...groups.keys()];
    const bar = plots.colourBar(
      "KL, bits/byte",
      flat.filter((one) => one !== null),
      "log",
    );
    const named = groups.length <= (plots.narrow() ? 16 : NAMED);
    const ticks = named
      ? {
          tickmode: "array",
          tickvals: places,
          ticktext: groups.map((group) => plots.label(groupName(group), plots.narrow() ? 14 : 30)),
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
          showscale: value.flat().some((kl) => kl > 0),
          colorbar: plots.narrow() ? bar.colorbar : { ...bar.colorbar, len: 0.6, y: 0.4 },
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
          line: { width: 1, color: plots.colour("muted") },
        },
      ],
      layout: plots.layout({
        xaxis: plots.axis("", { ...quiet, ...ticks, tickangle: -45, range, constrain: "domain" }),
        yaxis: plots.axis("", { ...quiet, ...ticks, range: [...range].reverse(), domain: [0, 0.84] }),
        yaxis2: plots.axis("√KL", {
          showgrid: false,
          domain: [0.86, 1],
          nticks: 3,
          fixedrange: true,
          rangemode: "tozero",
        }),
        shapes: outline(),
        showlegend: false,
        margin: plots.narrow() ? { l: 40, r: 10, t: 60, b: 10 } : { l: 60, r: 10, t: 10, b: 60 },
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
        dom.name(dom.shorten(data.names[group[0]], 90)),
        group.length > 1 ? ` and ${numbers.count(group.length - 1)} near it` : null,
      );
    if (one.length === 1 && other.length === 1) {
      const pair = report.pair(one[0], other[0]);
      return [
        named(one),
        named(other),
        element("p", {}, `KL ${numbers.formatEstimate(pair.kl, pair.standard_error)} bits/byte`),
        ...pair.flags.map((sentence) => element("p", { class: "warning" }, sentence)),
      ];
    }
    const count = r === c ? (one.length * (one.length - 1)) / 2 : one.length * other.length;
    return [
      named(one),
      named(other),
      element(
        "p",
        {},
        `median KL ${numbers.general(cells.value[r][c])} bits/byte of ${numbers.counted(count, "pair")}`,
      ),
    ];
  }

  function choose(event) {
    const { x, y, xaxis, yaxis } = plots.placeOf("heat-plot", event);
    const [one, other] = [yaxis.p2d(y), xaxis.p2d(x)].map((at) => cells.groups[Math.round(at)]);
    if (one?.length === 1 && other?.length === 1 && one !== other) selection.both(one[0], other[0]);
  }

  /** What the colours do not say of a KL of 0, which no log axis holds. */
  const zeros = report.pairs
    ? !report.pairs.value.includes(0)
      ? ""
      : report.pairs.value.some((kl) => kl > 0)
        ? "A KL of 0 is drawn as dark as the smallest other one."
        : "Every KL that is known is 0: these models agree on all texts."
    : "";

  function note() {
    const [a] = selection.selected();
    const around = view.kind === "around" && a !== undefined;
    const part = around
      ? `A, ${dom.shorten(data.names[a], 60)}, and the ${AROUND} models nearest to it, of ${numbers.count(K)}.`
      : `${numbers.count(K)} models are too many for single cells: the tree is cut into ${GROUPS} groups, and a colour is the median KL between two of them.`;
    dom.write(byId("heat-note"), [K > WHOLE ? part : "", zeros].filter(Boolean).join(" "));
    dom.write(byId("heat-how"), K <= WHOLE || around ? "A click on a cell chooses its pair." : "");
  }

  /** With many models the heat map follows the first chosen one, where that is asked for. */
  function follow() {
    const [a] = selection.selected();
    const around = byId("heat-view").querySelector("[value='around']");
    if (around) {
      around.disabled = a === undefined;
      if (a === undefined) view.kind = "groups";
      byId("heat-view").value = view.kind;
    }
    note();
    plots.redraw("heat-plot");
  }

  function draw() {
    if (!byId("heat-plot") || !report.pairs) return;
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
    plots.register("heat-plot", {
      make,
      on: plots.hover(card),
      click: choose,
      label: () =>
        `Heat map of KL between ${numbers.counted(K, "model")}, in bits per byte. The numbers of each pair are in its CSV.`,
    });
    selection.onChange(follow);
  }

  return { draw };
})();
