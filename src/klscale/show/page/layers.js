"use strict";

/** The layers of models through the logit lens. */
const layers = (() => {
  const { byId, element } = dom;
  const found = report.data.layers;
  const threads = found?.models ?? [];
  const names = threads.map((thread) => report.withoutPrefix(thread.model));
  const colourOf = (n) => (threads[n].look ? plots.onPaper(threads[n].look.colour) : plots.series(n));

  /** Whether each KL is one: where it is a distance, its mark is hollow. */
  const inRange = (thread, key) =>
    key === "to_output" ? thread.output_in_range : (thread.previous_in_range ?? thread.in_range);
  const outside = (thread, key, at) => inRange(thread, key)?.[at] === false;
  const positive = (value) => (numbers.isNumber(value) && value > 0 ? value : null);

  function bars(estimates) {
    const side = (end) =>
      estimates.map((one) => (one?.interval?.every(numbers.isNumber) ? Math.abs(one.interval[end] - one.value) : 0));
    return { type: "data", symmetric: false, array: side(1), arrayminus: side(0), thickness: 1, width: 0 };
  }

  function curve(thread, n, key) {
    const estimates = thread[key];
    const tint = colourOf(n);
    const out = key === "to_output";
    const places = thread.layer.map((_, at) => at).filter((at) => positive(estimates[at]?.value));
    return {
      showlegend: false,
      x: places.map((at) => thread.layer[at]),
      y: places.map((at) => estimates[at].value),
      error_y: { ...bars(places.map((at) => estimates[at])), color: tint },
      customdata: places.map((at) => [n, key, at]),
      mode: "lines+markers",
      hoverinfo: "none",
      line: { color: tint, width: 1.3, dash: out ? "dash" : "solid" },
      marker: {
        symbol: places.map((at) => `${out ? "square" : "circle"}${outside(thread, key, at) ? "-open" : ""}`),
        size: 7,
        color: tint,
        line: { width: 1.3, color: tint },
      },
    };
  }

  /** What colours and marks mean. */
  function keys() {
    const key = { x: [null], y: [null], hoverinfo: "skip" };
    const grey = plots.colour("muted");
    const mark = (name, symbol, dash) => ({
      ...key,
      name,
      mode: dash ? "lines+markers" : "markers",
      line: { color: grey, width: 1.3, dash },
      marker: { symbol, size: 7, color: grey, line: { width: 1.3, color: grey } },
    });
    const hollow = ["from_previous", "to_output"].some((key) =>
      threads.some((thread) => thread.layer.some((_, at) => outside(thread, key, at))),
    );
    return [
      ...threads.map((thread, n) => ({
        ...key,
        mode: "lines",
        name: plots.label(names[n]),
        line: { color: colourOf(n), width: 2 },
      })),
      mark("from the layer before", "circle", "solid"),
      mark("to the output", "square", "dash"),
      ...(hollow ? [mark("hollow: out of range", "circle-open", null)] : []),
    ];
  }

  function make() {
    const shown = threads.flatMap((thread, n) => [curve(thread, n, "from_previous"), curve(thread, n, "to_output")]);
    return {
      data: [...shown, ...keys()],
      layout: plots.layout({
        xaxis: plots.axis("layer (0: embedding)", {
          tick0: 0,
          dtick: Math.ceil(Math.max(...threads.map((thread) => thread.layer.length)) / 12),
          automargin: false,
        }),
        yaxis: plots.logAxis(
          "KL, bits/byte (95 % interval)",
          shown.map((one) => one.y),
          { automargin: false },
        ),
        margin: { l: 56, r: 14, t: 10, b: 50 + legendHeight },
      }),
    };
  }

  function card({ customdata }) {
    if (!customdata) return null;
    const [n, key, at] = customdata;
    const thread = threads[n];
    const title = [
      element("strong", {}, dom.name(dom.shorten(thread.model, 90))),
      element("p", {}, `layer ${thread.layer[at]}`),
    ];
    const said = (one, what) =>
      one
        ? element("p", {}, `${what} ${numbers.estimate(one)} bits/byte, 95 % ${numbers.interval(one.interval)}`)
        : null;
    if (key === "point") return [...title, said(thread.bits_per_byte[at], "how good:")].filter(Boolean);
    return [
      ...title,
      said(thread[key][at], key === "to_output" ? "KL to the output" : "KL from the layer before"),
      outside(thread, key, at)
        ? element("p", { class: "warning" }, "Out of range: a distance rather than KL.")
        : null,
    ].filter(Boolean);
  }

  function makeMap() {
    const share = (k) =>
      numbers.isNumber(found.share?.[k]) ? ` (${numbers.fixed(100 * found.share[k], 0)} % of variance)` : "";
    const placed = [...threads.entries()].filter(([, thread]) => thread.points);
    if (!placed.length) return plots.nothing("no text is common to all layers");
    return {
      data: placed.map(([n, thread]) => ({
        x: thread.points.map((point) => point[0]),
        y: thread.points.map((point) => point[1]),
        customdata: thread.layer.map((_, at) => [n, "point", at]),
        mode: "lines+markers+text",
        text: thread.layer.map((layer, at) =>
          threads.length === 1 || at === 0 || at === thread.layer.length - 1 ? String(layer) : "",
        ),
        textposition: "top right",
        textfont: { size: 11, color: plots.colour("muted") },
        hoverinfo: "none",
        name: plots.label(names[n]),
        line: { color: colourOf(n), width: 1.3 },
        marker: { size: 6, color: colourOf(n), symbol: thread.look?.symbol ?? "circle" },
      })),
      layout: plots.layout({
        xaxis: plots.axis(`component 1${share(0)}, √(bits/byte)`, { automargin: false }),
        yaxis: plots.axis(`component 2${share(1)}, √(bits/byte)`, { scaleanchor: "x", automargin: false }),
        margin: { l: 56, r: 14, t: 10, b: 50 + legendHeight },
      }),
    };
  }

  function describe() {
    return `KL from layer to layer of ${threads.map((thread) => `${thread.model}, ${numbers.counted(thread.layer.length, "layer")}`).join("; ")}.`;
  }

  /** A line for each model and each kind of mark, which takes none of the figure's height. */
  const legendHeight = 19 * (threads.length + 3);

  function fit() {
    for (const id of ["layers-plot", "layers-map"]) byId(id).style.height = `${360 + legendHeight}px`;
  }

  function draw() {
    if (!threads.length || !byId("layers-plot")) return;
    fit();
    plots.register("layers-plot", { make, label: describe, on: plots.hover(card) });
    plots.register("layers-map", {
      make: makeMap,
      label: () => `Map of the layers of ${numbers.counted(threads.length, "model")}.`,
      on: plots.hover(card),
    });
  }

  return { draw, threads, inRange };
})();
