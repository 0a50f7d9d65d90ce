"use strict";

/** The scale: a row for each setting, on a log axis of KL. */
const scale = (() => {
  const { byId } = dom;
  const found = report.data.scale;
  const settings = (found?.settings ?? []).map((row) => ({
    ...row,
    a: report.column(row.a),
    b: report.column(row.b),
    values: report.column(row.values),
    standard_errors: report.column(row.standard_errors),
    in_range: report.column(row.in_range),
  }));
  const notMeasured = found?.not_measured ?? [];
  const rows = [...settings.filter((row) => row.median > 0), ...notMeasured.map((row) => ({ ...row, absent: true }))];

  const single = (row) => row.values.length === 1;

  /** Golden-section steps spread neighbours, and the same pairs lie at the same place. */
  const jitter = (n) => 0.5 * (((n * 0.618034 + 0.5) % 1) - 0.5);

  function dots(y, row, whole) {
    const places = [...row.values.keys()].filter((n) => row.values[n] > 0 && Boolean(row.in_range[n]) === whole);
    const tint = plots.series(0);
    return {
      x: places.map((n) => row.values[n]),
      y: places.map((n) => y + jitter(n)),
      customdata: places.map((n) => [y, n]),
      mode: "markers",
      hoverinfo: "none",
      showlegend: false,
      opacity: Math.min(0.8, Math.max(0.3, 8 / row.values.length ** 0.6)),
      marker: {
        size: 6,
        symbol: whole ? "circle" : "circle-open",
        color: tint,
        line: { width: whole ? 0 : 1.2, color: tint },
      },
    };
  }

  function box(y, row) {
    const [x0, x1] = row.quartiles;
    return {
      type: "rect",
      x0,
      x1,
      y0: y - 0.3,
      y1: y + 0.3,
      layer: "below",
      fillcolor: plots.faded(plots.series(0), 0.16),
      line: { width: 0.75, color: plots.colour("muted") },
    };
  }

  const publishedOf = (row) => (row.absent ? row : row.published);

  function published(held) {
    const at = [...rows.keys()].filter((y) => publishedOf(rows[y]));
    const tint = plots.series(1);
    return {
      x: at.map((y) => publishedOf(rows[y]).median),
      y: at,
      customdata: at.map((y) => [y, "published"]),
      mode: "markers+text",
      text: at.map((y) => numbers.twoDigits(publishedOf(rows[y]).median)),
      textposition: "top center",
      textfont: { size: 10.5, color: plots.colour("warning") },
      hoverinfo: "none",
      name: held ? "published" : "published, other texts: not comparable",
      showlegend: at.length > 0,
      marker: { symbol: held ? "diamond" : "diamond-open", size: 10, color: tint, line: { width: 1.3, color: tint } },
    };
  }

  /** Medians and their intervals; where these are mere ranges of pairs they are dotted. */
  function lines(kind, dash) {
    const x = [];
    const y = [];
    rows.forEach((row, at) => {
      if (row.absent || row.interval_kind !== kind) return;
      x.push(...row.interval, null);
      y.push(at, at, null);
    });
    const name = kind === "models" ? "95 % over models" : "range of pairs (too few models)";
    return {
      x,
      y,
      mode: "lines",
      hoverinfo: "skip",
      name,
      showlegend: x.length > 0,
      line: { color: plots.colour("ink"), width: 1.4, dash },
    };
  }

  function medians() {
    const at = [...rows.keys()].filter((y) => !rows[y].absent);
    return {
      x: at.map((y) => rows[y].median),
      y: at,
      customdata: at.map((y) => [y, "median"]),
      mode: "markers",
      hoverinfo: "none",
      name: "median",
      marker: {
        symbol: "line-ns",
        size: 24,
        color: plots.colour("ink"),
        line: { width: 3, color: plots.colour("ink") },
      },
    };
  }

  /** What the dots mean, beside the legend of the rest. */
  function keys() {
    const tint = plots.series(0);
    const key = (name, symbol) => ({
      x: [null],
      y: [null],
      mode: "markers",
      name,
      hoverinfo: "skip",
      marker: { symbol, size: 7, color: tint },
    });
    const hollow = settings.some((row) => row.in_range.some((whole) => !whole));
    return [key("pair", "circle"), ...(hollow ? [key("pair out of range", "circle-open")] : [])];
  }

  function chosen() {
    const [a, b] = selection.selected();
    const pair = b === undefined ? null : report.pair(a, b);
    if (!pair || !(pair.kl > 0)) return { shapes: [], annotations: [] };
    const accent = plots.colour("accent");
    const edge = { xref: "x", yref: "paper", y0: 0, y1: 1 };
    const shapes = [{ type: "line", ...edge, x0: pair.kl, x1: pair.kl, line: { color: accent, width: 2 } }];
    if (pair.interval) {
      const [x0, x1] = pair.interval;
      shapes.unshift({
        type: "rect",
        ...edge,
        x0,
        x1,
        layer: "below",
        line: { width: 0 },
        fillcolor: plots.faded(accent, 0.14),
      });
    }
    const text = `A, B: ${numbers.formatEstimate(pair.kl, pair.standard_error)}`;
    return {
      shapes,
      annotations: [
        {
          x: Math.log10(pair.kl),
          xref: "x",
          y: 1,
          yref: "paper",
          yanchor: "bottom",
          showarrow: false,
          text,
          font: { color: accent, size: 12 },
        },
      ],
    };
  }

  function tick(row) {
    const under = row.absent ? "not measured" : numbers.counted(row.values.length, "pair");
    return `${plots.label(row.setting, plots.narrow() ? 16 : 34)}<br><span style="font-size:10px">${under}</span>`;
  }

  function make() {
    const { shapes, annotations } = chosen();
    const measured = [...rows.entries()].filter(([, row]) => !row.absent);
    const data = [
      ...measured.flatMap(([y, row]) => [dots(y, row, true), dots(y, row, false)]),
      ...keys(),
      lines("models", "solid"),
      lines("range", "dot"),
      medians(),
      published(found.comparable),
    ];
    return {
      data,
      layout: plots.layout({
        xaxis: plots.logAxis(
          "KL, bits/byte",
          measured.map(([, row]) => [...row.values]),
        ),
        yaxis: plots.axis("", {
          tickmode: "array",
          tickvals: [...rows.keys()],
          ticktext: rows.map(tick),
          ticks: "",
          showgrid: false,
          showline: false,
          range: [rows.length - 0.5, -0.5],
          fixedrange: true,
          tickfont: { size: 12, color: plots.colour("ink") },
        }),
        shapes: [...measured.filter(([, row]) => row.values.length > 1).map(([y, row]) => box(y, row)), ...shapes],
        annotations,
        margin: { l: 60, r: 20, t: 30, b: 60 },
      }),
    };
  }

  function card({ customdata }) {
    if (!customdata) return null;
    const [y, n] = customdata;
    const row = rows[y];
    const { element } = dom;
    const title = element("strong", {}, row.setting);
    if (n === "published") {
      const { median, source, compared } = publishedOf(row);
      return [
        title,
        element("p", {}, `published median ${numbers.twoDigits(median)} bits/byte (${source})`),
        element("p", {}, compared),
        found.comparable ? null : element("p", { class: "warning" }, "Other texts: not comparable."),
      ].filter(Boolean);
    }
    if (n === "median") {
      return [
        title,
        element("p", {}, `median ${numbers.formatEstimate(row.median, row.standard_error)} bits/byte`),
        element("p", {}, `quartiles ${numbers.interval(row.quartiles)}`),
        element(
          "p",
          {},
          `${row.interval_kind === "models" ? "95 % over models" : "range of pairs"} ${numbers.interval(row.interval)}`,
        ),
      ];
    }
    const name = (place) => element("p", {}, dom.name(dom.shorten(report.data.names[place] ?? "", 90)));
    return [
      title,
      name(row.a[n]),
      name(row.b[n]),
      element("p", {}, `KL ${numbers.formatEstimate(row.values[n], row.standard_errors[n])} bits/byte`),
      row.in_range[n] ? null : element("p", { class: "warning" }, "Out of range: a distance rather than KL."),
    ].filter(Boolean);
  }

  function pairsOf(row) {
    const all = row.n_available > row.values.length ? ` of ${numbers.count(row.n_available)}` : "";
    return numbers.count(row.values.length) + all;
  }

  function table() {
    const beside = (row) => publishedOf(row);
    const measured = (text) => (row) => (row.absent ? "–" : text(row));
    return tables.make({
      caption: "The scale: KL in bits/byte",
      rows: [...settings, ...rows.filter((row) => row.absent)],
      columns: [
        { title: "setting", cell: (row) => row.setting, sort: (row) => row.setting },
        {
          title: "median ± SE, bits/byte",
          number: true,
          cell: measured((row) => numbers.formatEstimate(row.median, row.standard_error)),
          sort: (row) => (row.absent ? null : row.median),
        },
        { title: "quartiles over pairs", number: true, cell: measured((row) => (single(row) ? "" : numbers.interval(row.quartiles))) },
        {
          title: "95 % over models",
          number: true,
          cell: measured((row) =>
            single(row) ? "one pair" : numbers.interval(row.interval) + (row.interval_kind === "models" ? "" : " (range)"),
          ),
        },
        {
          title: "pairs",
          number: true,
          cell: measured(pairsOf),
          sort: (row) => (row.absent ? null : row.values.length),
        },
        {
          title: "models",
          number: true,
          cell: measured((row) => numbers.count(row.n_models)),
          sort: (row) => row.n_models ?? null,
        },
        {
          title: found.comparable ? "published" : "published (other texts: not comparable)",
          number: true,
          sort: (row) => beside(row)?.median ?? null,
          cell: (row) => (beside(row) ? `${numbers.twoDigits(beside(row).median)} ${beside(row).source}` : "–"),
        },
      ],
    });
  }

  function describe() {
    const spoken = settings.map((row) => `${row.setting} ${numbers.formatEstimate(row.median, row.standard_error)}`);
    return `The scale, medians in bits per byte: ${spoken.join("; ")}.`;
  }

  function note() {
    const sentences = ["± is the standard error over texts; (range): over the pairs, for too few models."];
    if (found.noise_floor) sentences.push(found.noise_floor);
    if (rows.some(publishedOf) && !found.comparable)
      sentences.push("The published values are for other texts: beside, not comparable.");
    if (settings.some((row) => !(row.median > 0)))
      sentences.push("A median of 0 has no place on a log axis; it is in the table.");
    dom.write(byId("scale-note"), sentences.join(" "));
  }

  function draw() {
    if (!found || !byId("scale-plot")) return;
    note();
    byId("scale-plot").style.height = `${rows.length * 46 + 170}px`; // before it is drawn: what lies below must not move
    byId("scale-table").replaceChildren(table().box);
    plots.register("scale-plot", { make, label: describe, on: plots.hover(card) });
    selection.onChange(() => plots.redraw("scale-plot"));
  }

  return { draw, settings };
})();
