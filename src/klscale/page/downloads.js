"use strict";

/** The numbers as CSV, made here from the data of the page; figures as SVG and PNG. */
const downloads = (() => {
  const { element } = dom;
  const { data, K } = report;

  /** A cell: numbers as they are, text quoted; text that a spreadsheet would compute gets an apostrophe. */
  function cell(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    if (typeof value === "number" || typeof value === "boolean") return String(value);
    const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(safe) || safe !== safe.trim() ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  const line = (values) => values.map(cell).join(",") + "\r\n";

  /** What float32 holds, without the digits that it does not. */
  const short = (value) => (Number.isNaN(value) ? null : Number(value.toPrecision(7)));

  const estimate = (one) => [one?.value, one?.standard_error, one?.interval?.[0], one?.interval?.[1]];
  const estimateColumns = (what) => [what, `${what}_standard_error`, `${what}_low`, `${what}_high`];

  function* summary() {
    yield ["section", "sentence"];
    for (const { section, text } of data.summary ?? []) yield [section, text];
  }

  function* scaleSettings() {
    yield [
      "setting",
      "median",
      "standard_error",
      "quartile_low",
      "quartile_high",
      "interval_low",
      "interval_high",
      "interval_kind",
      "n_pairs",
      "n_available",
      "n_models",
      "published_median",
      "published_source",
      "published_comparable",
    ];
    for (const row of scale.settings) {
      yield [
        row.setting,
        row.median,
        row.standard_error,
        ...row.quartiles,
        ...row.interval,
        row.interval_kind,
        row.values.length,
        row.n_available,
        row.n_models,
        row.published?.median,
        row.published?.source,
        row.published ? data.scale.comparable : null,
      ];
    }
    for (const row of data.scale.not_measured ?? []) {
      yield [row.setting, ...Array(10).fill(null), row.median, row.source, data.scale.comparable];
    }
  }

  function* scalePairs() {
    yield ["setting", "a", "b", "kl", "standard_error", "in_range"];
    for (const row of scale.settings) {
      for (let n = 0; n < row.values.length; n += 1) {
        yield [
          row.setting,
          data.names[row.a[n]],
          data.names[row.b[n]],
          short(row.values[n]),
          short(row.standard_errors[n]),
          Boolean(row.in_range[n]),
        ];
      }
    }
  }

  function* mapPoints() {
    const { pca, tsne2, tsne3, added } = data.map;
    yield ["model", "pc1", "pc2", "pc3", "tsne1", "tsne2", "tsne3d_1", "tsne3d_2", "tsne3d_3", "placed_later"];
    const of = (source, i, n) => Array.from({ length: n }, (_, k) => source?.points?.[i]?.[k]);
    const later = new Set(added ?? []);
    for (let i = 0; i < K; i += 1)
      yield [data.names[i], ...of(pca, i, 3), ...of(tsne2, i, 2), ...of(tsne3, i, 3), later.has(i)];
  }

  function* allPairs() {
    const bits = data.pairs.flag_texts ?? [];
    yield ["a", "b", "kl", "standard_error", "low", "high", "n_texts", ...bits.map(([, sentence]) => sentence)];
    const { value, standard_error: error, critical_value: critical, n_texts: texts, flags } = report.pairs;
    for (let i = 0, at = 0; i < K; i += 1) {
      for (let j = i + 1; j < K; j += 1, at += 1) {
        const factor = value[at] > 0 ? Math.exp((critical[at] * error[at]) / value[at]) : 1;
        yield [
          data.names[i],
          data.names[j],
          short(value[at]),
          short(error[at]),
          short(value[at] / factor),
          short(value[at] * factor),
          texts[at],
          ...bits.map(([bit]) => (flags[at] & bit ? 1 : 0)),
        ];
      }
    }
  }

  function* checkpoints() {
    const keys = ["bits_per_byte", "from_first", "from_previous", "from_last"];
    yield ["run", "step", ...keys.flatMap(estimateColumns), "weights_from_first", "weights_from_previous"];
    for (const run of trajectories.runs) {
      for (const [at, step] of run.steps.entries()) {
        yield [
          run.run,
          step,
          ...keys.flatMap((key) => estimate(run[key]?.[at])),
          run.weights_from_first?.[at],
          run.weights_from_previous?.[at],
        ];
      }
    }
  }

  function* exponents() {
    yield [
      "runs",
      "exponent",
      "space",
      ...estimateColumns("value"),
      ...estimateColumns("time_averaged"),
      ...estimateColumns("dimension"),
      "lag_low",
      "lag_high",
      "heavy_tails",
      "probability",
    ];
    for (const row of trajectories.exponentRows()) {
      yield [
        row.run,
        row.name,
        row.space,
        ...estimate(row.estimate),
        ...estimate(row.time_averaged),
        ...estimate(row.dimension),
        row.lags?.[0],
        row.lags?.[1],
        row.heavy_tails,
        row.probability,
      ];
    }
    for (const group of data.trajectories.seeds ?? []) {
      for (const name of ["c_q", "c_w", "alpha"]) {
        yield [
          group.runs.join(" "),
          name,
          "over seeds",
          ...estimate(group[name]),
          ...Array(11).fill(null),
          name === "alpha" ? group.probability : null,
        ];
      }
    }
  }

  /** What the other figures of runs show: growth with lag, stabilisation, paths and their walks, shares of variance. */
  function* curves() {
    yield ["run", "figure", "space", "step", "x", "y", "low", "high"];
    for (const run of trajectories.runs) {
      for (const one of run.exponents ?? []) {
        for (const [n, lag] of one.lag.entries())
          yield [
            run.run,
            "mean squared distance by lag",
            one.space,
            null,
            lag,
            one.mean_squared_distance[n],
            null,
            null,
          ];
      }
      for (const one of run.stabilisation ?? []) {
        for (const [n, x] of one.thresholds.entries())
          yield [
            run.run,
            "settled from step by threshold",
            one.space,
            null,
            x,
            one.steps[n],
            one.low?.[n],
            one.high?.[n],
          ];
      }
      for (const one of run.paths ?? []) {
        for (const [what, points] of [
          ["principal components", one.pca],
          ["t-SNE", one.tsne],
          ["random walk", one.walk],
        ]) {
          for (const [n, [x, y]] of points.entries())
            yield [run.run, `path: ${what}`, one.space, one.steps[n], x, y, null, null];
        }
        for (const [what, shares] of [
          ["run", one.share],
          ["random walk", one.walk_share],
        ]) {
          for (const [n, share] of shares.entries())
            yield [run.run, `share of variance by component: ${what}`, one.space, null, n + 1, share, null, null];
        }
      }
    }
  }

  function* layerRows() {
    const keys = ["bits_per_byte", "from_previous", "to_output"];
    yield ["model", "layer", ...keys.flatMap(estimateColumns), "in_range", "component_1", "component_2"];
    for (const thread of layers.threads) {
      for (const [at, layer] of thread.layer.entries()) {
        yield [
          thread.model,
          layer,
          ...keys.flatMap((key) => estimate(thread[key]?.[at])),
          thread.in_range?.[at],
          ...(thread.points?.[at] ?? [null, null]),
        ];
      }
    }
  }

  function* quantizationRows() {
    const keys = ["kl", "more_than_previous", "bits_per_byte_difference"];
    yield ["base", "variant", "kind", ...keys.flatMap(estimateColumns), "placed", "notes"];
    for (const row of quantization.rows) {
      yield [
        row.base,
        row.name,
        row.kind,
        ...keys.flatMap((key) => estimate(row[key])),
        row.placed,
        (row.flags ?? []).join(" "),
      ];
    }
  }

  function* modelRows() {
    yield [
      "model",
      ...report.columns.flatMap((one) =>
        one.kind === "estimate" ? [one.key, `${one.key}_standard_error`] : [one.key],
      ),
    ];
    for (let i = 0; i < K; i += 1) {
      yield [
        data.names[i],
        ...report.columns.flatMap((one) =>
          one.kind === "estimate" ? [one.values[i], one.standard_errors?.[i]] : [one.values[i]],
        ),
      ];
    }
  }

  const TABLES = {
    summary: ["sentences", summary],
    "scale-settings": ["settings", scaleSettings],
    "scale-pairs": ["pairs of the settings", scalePairs],
    map: ["coordinates", mapPoints],
    pairs: ["all pairs", allPairs],
    trajectories: ["checkpoints", checkpoints],
    exponents: ["exponents", exponents],
    curves: ["lag, stabilisation, paths", curves],
    layers: ["layers", layerRows],
    quantization: ["variants", quantizationRows],
    models: ["models", modelRows],
  };
  const TITLES = {
    "path-plot": "path",
    "lag-plot": "lag",
    "training-plot": "KL along training",
    "shares-plot": "variance",
    "settling-plot": "stabilisation",
    "scale-plot": "figure",
    "map-plot": "figure",
    "heat-plot": "figure",
    "layers-plot": "KL",
    "layers-map": "map",
    "quantization-plot": "figure",
  };

  /** A table as CSV, in parts that the browser joins: half a million pairs are no single string. */
  function csv(name) {
    const parts = [];
    let part = [];
    for (const row of TABLES[name][1]()) {
      part.push(line(row));
      if (part.length === 20000) {
        parts.push(part.join(""));
        part = [];
      }
    }
    parts.push(part.join(""));
    return new Blob(parts, { type: "text/csv;charset=utf-8" });
  }

  function save(name) {
    const address = URL.createObjectURL(csv(name));
    const link = element("a", { href: address, download: `klscale-${name}.csv` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 30000);
  }

  async function image(id, format) {
    if (!plots.drawn(id)) await plots.draw(id);
    await plots.download(id, format);
  }

  function fill(box) {
    const words = (text) => (text ?? "").split(" ").filter(Boolean);
    const tables = words(box.dataset.csv).map((name) =>
      dom.button(`CSV: ${TABLES[name][0]}`, () => save(name), { dataset: { download: name } }),
    );
    const figures = words(box.dataset.plots).flatMap((id) =>
      ["svg", "png"].map((format) =>
        dom.button(`${format.toUpperCase()}: ${TITLES[id]}`, () => image(id, format), {
          dataset: { image: id, format },
        }),
      ),
    );
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Downloads");
    box.replaceChildren(element("span", { class: "quiet" }, "Download"), ...tables, ...figures);
  }

  function draw() {
    document.querySelectorAll(".downloads").forEach(fill);
  }

  return { draw, csv };
})();
