"use strict";

/** The numbers as CSV, made here from the data of the page; figures as SVG and PNG. */
const downloads = (() => {
  const { element } = dom;
  const { data, K } = report;

  /** A cell: numbers as they are, text quoted; text that a spreadsheet would compute gets an apostrophe. */
  function cell(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    if (typeof value === "number" || typeof value === "boolean") return String(value);
    const safe = /^[=+\-@\t\r\n]/.test(value) ? `'${value}` : value;
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
      "published_compared",
      "published_pairs",
      "published_comparable",
    ];
    const published = (row) =>
      row ? [row.median, row.source, row.compared, row.pairs, data.scale.comparable] : Array(5).fill(null);
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
        ...published(row.published),
      ];
    }
    for (const row of data.scale.not_measured ?? []) {
      yield [row.setting, ...Array(10).fill(null), ...published(row)];
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
    yield [
      ...["model", "pc1", "pc2", "pc3", "tsne1", "tsne2", "tsne3d_1", "tsne3d_2", "tsne3d_3", "placed_later"],
      ...estimateColumns("unexplained"),
      "nearest",
      ...estimateColumns("kl_of_nearest"),
      "typical_kl_of_nearest",
    ];
    const of = (source, i, n) => Array.from({ length: n }, (_, k) => source?.points?.[i]?.[k]);
    const later = new Set(added ?? []);
    for (let i = 0; i < K; i += 1) {
      const off = report.offMap(i);
      yield [
        ...[data.names[i], ...of(pca, i, 3), ...of(tsne2, i, 2), ...of(tsne3, i, 3), later.has(i)],
        ...[...estimate(off?.unexplained), off?.nearest, ...estimate(off?.kl), off?.typical],
      ];
    }
  }

  /** Of the variance, what each axis of the maps holds. */
  function* axes() {
    yield ["map", "component", "share_of_variance"];
    for (const [what, share] of [
      ["models", data.map?.pca?.share],
      ["layers", data.layers?.share],
    ]) {
      for (const [n, part] of (share ?? []).entries()) yield [what, n + 1, part];
    }
  }

  /** The tree over the heat map: what each branch joins, models or branches before, and where. */
  function* tree() {
    yield ["branch", "one", "other", "root_kl"];
    const name = (n) => (n < K ? data.names[n] : `branch ${n - K + 1}`);
    for (const [n, [a, b, height]] of (data.pairs.dendrogram?.merges ?? []).entries())
      yield [`branch ${n + 1}`, name(a), name(b), height];
  }

  function* allPairs() {
    const bits = data.pairs.flag_texts ?? [];
    yield ["a", "b", "kl", "standard_error", "low", "high", "n_texts", ...bits.map(([, sentence]) => sentence)];
    const { value, standard_error: error, n_texts: texts, flags } = report.pairs;
    for (let i = 0, at = 0; i < K; i += 1) {
      for (let j = i + 1; j < K; j += 1, at += 1) {
        const [low, high] = report.intervalAt(at) ?? [NaN, NaN];
        yield [
          data.names[i],
          data.names[j],
          short(value[at]),
          short(error[at]),
          short(low),
          short(high),
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
      "intercept",
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
        row.intercept,
        row.probability,
      ];
    }
    for (const group of data.trajectories.seeds ?? []) {
      for (const [name, over, one] of [
        ["c_q", "texts", group.c_q],
        ["c_q", "seeds", group.c_q_over_seeds],
        ["c_w", "seeds", group.c_w],
        ["alpha", "seeds", group.alpha],
      ]) {
        yield [
          group.runs.join(" "),
          name,
          `mean over seeds, standard error over ${over}`,
          ...estimate(one),
          ...Array(12).fill(null),
          name === "alpha" ? group.probability : null,
        ];
      }
    }
  }

  /** What is said of each run in each space: how it winds, and from where it has settled. */
  function* runRows() {
    yield [
      ...["run", "space", "warmup", "warmup_known", ...estimateColumns("winding")],
      ...["walk_winding_low", "walk_winding_high", "spiral", "settled_step", "settled_low", "settled_high"],
      ...["settled_by_first", "threshold", "unit", "threshold_source", "first_to_last", "notes"],
    ];
    for (const run of trajectories.runs) {
      const found = [...(run.paths ?? []), ...(run.stabilisation ?? [])].map((one) => one.space);
      for (const space of new Set(found.length ? found : [null])) {
        const path = (run.paths ?? []).find((one) => one.space === space);
        const settled = (run.stabilisation ?? []).find((one) => one.space === space);
        const both = (ends) => [ends?.[0], ends?.[1]];
        yield [
          ...[run.run, space, run.warmup, run.warmup_known, ...estimate(path?.winding)],
          ...[...both(path?.walk_winding_range), path?.spiral],
          ...[settled?.step, ...both(settled?.first ? null : settled?.interval), settled?.first],
          ...[settled?.threshold, settled && trajectories.unitOf(settled), settled?.threshold_source, settled?.total],
          (run.notes ?? []).join(" "),
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
    const flags = ["previous_in_range", "output_in_range"];
    yield ["model", "layer", ...keys.flatMap(estimateColumns), ...flags, "component_1", "component_2"];
    for (const thread of layers.threads) {
      for (const [at, layer] of thread.layer.entries()) {
        yield [
          thread.model,
          layer,
          ...keys.flatMap((key) => estimate(thread[key]?.[at])),
          layers.inRange(thread, "from_previous")?.[at],
          layers.inRange(thread, "to_output")?.[at],
          ...(thread.points?.[at] ?? [null, null]),
        ];
      }
    }
  }

  function* quantizationRows() {
    const keys = ["kl", "more_than_previous", "bits_per_byte_difference"];
    yield [
      ...["base", "variant", "kind", ...keys.flatMap(estimateColumns), "placed", "notes"],
      ...estimateColumns("base_bits_per_byte"),
    ];
    for (const row of quantization.rows) {
      yield [
        row.base,
        row.name,
        row.kind,
        ...keys.flatMap((key) => estimate(row[key])),
        row.placed,
        (row.flags ?? []).join(" "),
        ...estimate(row.base_bits_per_byte),
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

  function* method() {
    const { texts } = data;
    yield ["what", "text", "source"];
    yield* [
      ["klscale", data.version],
      ["made", data.date],
      ["store", data.store],
      ["texts", texts.name],
      ["id of the texts", texts.id],
      ["number of texts", texts.n_texts],
      ["mean bytes", texts.mean_bytes],
      ["documents", texts.n_documents],
      ["clip, nats", texts.clip],
      ["perplexity of t-SNE", data.map?.perplexity],
      ...(data.map?.notes ?? []).map((text) => ["note on the map", text]),
      ...(data.method.rows ?? []),
      ...(data.method.formulas ?? []),
      ...(data.method.footguns ?? []).map((text) => ["what the numbers do not say", text]),
    ];
  }

  const TABLES = {
    summary: ["sentences", summary],
    "scale-settings": ["settings", scaleSettings],
    "scale-pairs": ["pairs of the settings", scalePairs],
    map: ["coordinates", mapPoints],
    axes: ["shares of the axes", axes],
    pairs: ["all pairs", allPairs],
    tree: ["tree", tree],
    trajectories: ["checkpoints", checkpoints],
    exponents: ["exponents", exponents],
    runs: ["winding, settling", runRows],
    curves: ["lag, stabilisation, paths", curves],
    layers: ["layers", layerRows],
    quantization: ["variants", quantizationRows],
    models: ["models", modelRows],
    method: ["method", method],
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
