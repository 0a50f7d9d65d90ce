"use strict";

/** Training runs: one at a time, with a checkpoint that is marked in all its figures. */
const trajectories = (() => {
  const { byId, element } = dom;
  const found = report.data.trajectories;
  const runs = found?.runs ?? [];
  const view = { run: 0, step: 0, space: 0, playing: null, frame: 0 };
  const run = () => runs[view.run];
  const stepOf = () => run().steps[view.step];

  const spaceColour = (space) => plots.series(space === "weights" ? 1 : 0);
  const positive = (value) => (numbers.isNumber(value) && value > 0 ? value : null);

  // -------------------------------------------------------------------------------------------------- KL along training

  const CURVES = [
    ["from_previous", "from the checkpoint before", "circle", "solid"],
    ["from_last", "from the last one", "square-open", "dash"],
    ["from_first", "from the first one", "diamond-open", "dot"],
  ];

  function curve([key, name, symbol, dash], n) {
    const estimates = run()[key] ?? [];
    const x = run().steps.map(plots.stepAt);
    const tint = plots.series(n);
    const end = (side) => estimates.map((one) => positive(one?.interval?.[side]));
    return [
      ...plots.band(x, end(0), end(1), tint),
      {
        x,
        y: estimates.map((one) => positive(one?.value)),
        customdata: run().steps.map((_, at) => [key, at]),
        name,
        mode: "lines+markers",
        hoverinfo: "none",
        connectgaps: false,
        line: { color: tint, width: 1.4, dash },
        marker: { symbol, size: 6, color: tint, line: { width: 1.3, color: tint } },
      },
    ];
  }

  function training() {
    return {
      data: CURVES.flatMap(curve),
      layout: plots.layout({
        xaxis: plots.stepAxis(run().steps),
        yaxis: plots.logAxis(
          "KL, bits/byte (95 % over texts)",
          CURVES.map(([key]) => (run()[key] ?? []).map((one) => one?.value)),
        ),
        shapes: [plots.vertical(plots.stepAt(stepOf())), warmup()].filter(Boolean),
        margin: { l: 56, r: 14, t: 10, b: 80 },
      }),
    };
  }

  function warmup() {
    const end = run().warmup;
    if (!numbers.isNumber(end) || end <= run().steps[0]) return null;
    return {
      type: "rect",
      xref: "x",
      yref: "paper",
      x0: plots.stepAt(run().steps[0]),
      x1: plots.stepAt(end),
      y0: 0,
      y1: 1,
      layer: "below",
      line: { width: 0 },
      fillcolor: plots.faded(plots.colour("muted"), 0.1),
    };
  }

  function trainingCard({ customdata }) {
    if (!customdata) return null;
    const [key, at] = customdata;
    const one = run()[key][at];
    return [
      element("strong", {}, `step ${numbers.count(run().steps[at])}`),
      element("p", {}, `KL ${CURVES.find(([name]) => name === key)[1]}: ${numbers.estimate(one)} bits/byte`),
      element("p", {}, `95 %: ${numbers.interval(one?.interval)}`),
    ];
  }

  // ------------------------------------------------------------------------------------------------------ growth with lag

  const exponents = () => (run().exponents ?? []).filter((one) => one.lag?.length);

  /** Both spaces in one figure: in units of their own fits at the first lag. */
  function growth(one) {
    const slope = one.time_averaged.value;
    const level = Math.exp(one.intercept) * one.lag[0] ** slope;
    const tint = spaceColour(one.space);
    const hollow = one.space === "weights";
    const error =
      one.time_averaged.standard_error > 0
        ? numbers.formatEstimate(slope, one.time_averaged.standard_error)
        : numbers.general(slope, 3);
    return [
      {
        x: one.lag,
        y: one.mean_squared_distance.map((value) => positive(value / level)),
        mode: "markers",
        name: one.space,
        hoverinfo: "none",
        customdata: one.lag.map((lag, n) => [one.space, lag, one.mean_squared_distance[n]]),
        marker: { symbol: hollow ? "square-open" : "circle", size: 7, color: tint, line: { width: 1.3, color: tint } },
      },
      {
        x: one.lag,
        y: one.lag.map((lag) => (lag / one.lag[0]) ** slope),
        mode: "lines",
        name: `slope ${error}`,
        hoverinfo: "skip",
        line: { color: tint, width: 1.3, dash: hollow ? "dash" : "solid" },
      },
    ];
  }

  function lag() {
    const all = exponents();
    if (!all.length) return plots.nothing("fewer checkpoints past warm-up than a fit takes");
    const lags = all.flatMap((one) => one.lag);
    const ends = lags.length ? [Math.min(...lags), Math.max(...lags)] : [];
    const since = stepOf() - run().warmup;
    const shown = all.flatMap(growth);
    const diffusion = {
      x: ends,
      y: ends.map((end) => end / ends[0]),
      mode: "lines",
      name: "c = 1: diffusion",
      hoverinfo: "skip",
      line: { color: plots.colour("muted"), width: 1, dash: "dot" },
    };
    return {
      data: [...shown, diffusion],
      layout: plots.layout({
        xaxis: plots.logAxis("lag, steps", lags, { tickformat: ",~g" }),
        yaxis: plots.logAxis(
          "mean distance² (fit at first lag: 1)",
          shown.map((one) => one.y),
        ),
        margin: { l: 56, r: 14, t: 10, b: 80 },
        shapes:
          since >= ends[0] && since <= ends[1]
            ? [plots.vertical(since, { line: { color: plots.colour("accent"), width: 1.2, dash: "dot" } })]
            : [],
      }),
    };
  }

  function lagCard({ customdata }) {
    if (!customdata) return null;
    const [space, at, value] = customdata;
    return [
      element("strong", {}, space),
      element("p", {}, `lag ${numbers.count(at)} steps: mean squared distance ${numbers.general(value, 4)}`),
    ];
  }

  // ------------------------------------------------------------------------------------------------------------ the path

  const path = () => run().paths?.[view.space] ?? run().paths?.[0];

  function panels() {
    const one = path();
    return one
      ? [
          ["principal components", one.pca, true],
          ["t-SNE of the same", one.tsne, true],
          ["a random walk", one.walk, false],
        ].filter(([, points]) => points?.length)
      : [];
  }

  /** Whether its panels lie under each other; the height is set before it is drawn, as what lies below must not move. */
  function fitPath() {
    const stacked = plots.narrow();
    byId("path-plot").style.height = `${stacked ? 280 * Math.max(1, panels().length) + 60 : 340}px`;
    return stacked;
  }

  function pathMake() {
    if (!path()) return plots.nothing("fewer checkpoints past warm-up than a shape takes");
    const shown = panels();
    const one = path();
    const stacked = fitPath();
    const gap = 0.09;
    const traces = [];
    const axes = {};
    const annotations = [];
    shown.forEach(([title, points, own], n) => {
      const id = n ? n + 1 : "";
      const span = (1 - gap * (shown.length - 1)) / shown.length;
      const from = stacked ? 1 - (n + 1) * span - n * gap : n * (span + gap);
      const domain = [from, from + span];
      const at = own ? one.steps.indexOf(stepOf()) : -1;
      const steps = one.steps.slice(0, points.length);
      const unit = plots.plain(title.startsWith("t-SNE") ? "arbitrary units" : one.unit);
      axes[`xaxis${id}`] = plots.axis(unit, { domain: stacked ? [0, 1] : domain, anchor: `y${id}`, nticks: 5 });
      axes[`yaxis${id}`] = plots.axis("", {
        domain: stacked ? domain : [0, 1],
        anchor: `x${id}`,
        scaleanchor: `x${id}`,
        nticks: 5,
      });
      const [x, y] = [0, 1].map((k) => points.map((point) => point[k]));
      const of = { x, y, xaxis: `x${id}`, yaxis: `y${id}`, showlegend: false };
      traces.push({ ...of, mode: "lines", hoverinfo: "skip", line: { color: plots.colour("rule"), width: 1.2 } });
      traces.push({
        ...of,
        mode: "markers",
        hoverinfo: "none",
        customdata: steps,
        marker: { size: 7, ...stepColours(steps, n === 0), line: { width: 0.5, color: plots.colour("muted") } },
      });
      traces.push({
        ...of,
        x: at < 0 ? [null] : [x[at]],
        y: at < 0 ? [null] : [y[at]],
        mode: "markers",
        hoverinfo: "skip",
        marker: {
          symbol: "circle-open",
          size: 15,
          color: plots.colour("accent"),
          line: { width: 2.5, color: plots.colour("accent") },
        },
      });
      annotations.push({
        text: title,
        xref: `x${id} domain`,
        yref: `y${id} domain`,
        x: 0,
        y: 1,
        xanchor: "left",
        yanchor: "bottom",
        showarrow: false,
        font: { size: 12 },
      });
    });
    return {
      data: traces,
      layout: plots.layout({
        ...axes,
        annotations,
        showlegend: false,
        margin: { l: 44, r: 10, t: stacked ? 90 : 26, b: 44 },
      }),
    };
  }

  function stepColours(steps, shown) {
    return {
      color: steps,
      colorscale: "Cividis",
      showscale: shown,
      colorbar: {
        title: { text: "step", font: { size: 11.5, color: plots.colour("muted") } },
        thickness: 10,
        len: 0.9,
        outlinewidth: 0,
        tickformat: "~s",
        nticks: 5,
        tickfont: { size: 11, color: plots.colour("muted") },
        ...plots.lying(),
      },
    };
  }

  function pathNote() {
    const one = path();
    if (!one) return "";
    const [low, high] = one.walk_winding_range ?? [];
    const winding = `It winds ${numbers.estimate(one.winding)} turns about its mean; a random walk with the same step lengths ${numbers.interval([low, high])}.`;
    return `${winding} ${one.spiral ? "That is more than walks do: a spiral." : "No spiral beyond what walks do."}`;
  }

  // --------------------------------------------------------------------------------------------- shares, stabilisation

  function shares() {
    const paths = run().paths ?? [];
    if (!paths.length) return plots.nothing("fewer checkpoints past warm-up than a shape takes");
    const count = Math.max(0, ...paths.map((one) => one.share.length));
    const k = [...Array(count).keys()].map((n) => n + 1);
    const walk = paths[0]?.walk_share ?? [];
    return {
      data: [
        {
          x: k,
          y: walk,
          mode: "lines",
          name: "random walk: 6/(π²k²)",
          hoverinfo: "skip",
          line: { color: plots.colour("rule"), width: 4 },
        },
        ...paths.map((one) => ({
          x: k,
          y: one.share,
          mode: "lines+markers",
          name: one.space,
          hoverinfo: "none",
          customdata: k.map((n) => [one.space, n, one.share[n - 1]]),
          line: { color: spaceColour(one.space), width: 1.4, dash: one.space === "weights" ? "dash" : "solid" },
          marker: {
            size: 7,
            symbol: one.space === "weights" ? "square-open" : "circle",
            color: spaceColour(one.space),
            line: { width: 1.3, color: spaceColour(one.space) },
          },
        })),
      ],
      layout: plots.layout({
        xaxis: plots.axis("component k", { dtick: 1 }),
        yaxis: plots.axis("share of variance", { rangemode: "tozero", tickformat: ".0%" }),
        margin: { l: 56, r: 14, t: 10, b: 80 },
      }),
    };
  }

  function sharesCard({ customdata }) {
    return (
      customdata && [
        element("strong", {}, customdata[0]),
        element("p", {}, `component ${customdata[1]}: ${numbers.fixed(100 * customdata[2], 1)} % of variance`),
      ]
    );
  }

  /** Both spaces in one figure: thresholds as shares of the squared distance from the first checkpoint to the last. */
  function settled(one) {
    const whole = one.total ?? one.thresholds.at(-1);
    const x = one.thresholds.map((value) => value / whole);
    const tint = spaceColour(one.space);
    const step = { line: { shape: "hv", width: 0 } };
    const known = one.low?.every(numbers.isNumber);
    return [
      ...(known ? plots.band(x, one.low.map(plots.stepAt), one.high.map(plots.stepAt), tint, step) : []),
      {
        x,
        y: one.steps.map(plots.stepAt),
        customdata: one.steps.map((value, n) => [one.space, within(one, one.thresholds[n]), value]),
        mode: "lines",
        name: one.space,
        hoverinfo: "none",
        line: { color: tint, width: 1.6, shape: "hv", dash: one.space === "weights" ? "dash" : "solid" },
      },
    ];
  }

  function settling() {
    const all = (run().stabilisation ?? []).filter((one) => one.thresholds?.length);
    if (!all.length) return plots.nothing("not known");
    const at = {
      type: "line",
      xref: "paper",
      yref: "y",
      x0: 0,
      x1: 1,
      y0: plots.stepAt(stepOf()),
      y1: plots.stepAt(stepOf()),
      line: { color: plots.colour("accent"), width: 1.5 },
    };
    const asked = all
      .filter((one) => one.threshold > 0)
      .map((one) =>
        plots.vertical(one.threshold / (one.total ?? one.thresholds.at(-1)), {
          line: { color: spaceColour(one.space), width: 1, dash: "dot" },
        }),
      );
    const { tickvals, ticktext, range } = plots.stepAxis(run().steps);
    return {
      data: all.flatMap(settled),
      layout: plots.layout({
        xaxis: plots.logAxis(
          "threshold, share of the squared distance first to last",
          all.map((one) => one.thresholds),
          { tickformat: "~p" },
        ),
        yaxis: plots.axis("settled from step", { tickmode: "array", tickvals, ticktext, range }),
        shapes: [...asked, at],
        margin: { l: 56, r: 14, t: 10, b: 80 },
      }),
    };
  }

  function settlingCard({ customdata }) {
    return (
      customdata && [
        element("strong", {}, customdata[0]),
        element(
          "p",
          {},
          `within ${customdata[1]} of the last checkpoint from step ${numbers.count(customdata[2])}`,
        ),
      ]
    );
  }

  const within = (one, threshold) =>
    unitOf(one) === "squared distance"
      ? `a squared distance of ${numbers.general(threshold)}`
      : `${numbers.general(threshold)} ${unitOf(one)}`;
  const unitOf = (one) => one.unit ?? (one.space === "weights" ? "squared distance" : "bits/byte");

  /** The step, with its interval; a run that has settled before its first checkpoint has none. */
  function settledFrom(one) {
    const step = numbers.count(one.step);
    if (one.first) return `by step ${step}, its first`;
    const known = one.interval?.every(numbers.isNumber);
    return `from step ${step}${known ? ` (95 %: ${one.interval.map(numbers.count).join(" to ")})` : ""}`;
  }

  function settlingNotes() {
    return (run().stabilisation ?? [])
      .filter((one) => one.step !== null && one.step !== undefined)
      .map((one) => {
        const source = one.threshold_source ? `, ${one.threshold_source}` : "";
        return `${one.space}: settled ${settledFrom(one)}, within ${within(one, one.threshold)}${source}.`;
      });
  }

  // ---------------------------------------------------------------------------------------------------- the checkpoint

  function readout() {
    const at = view.step;
    const of = (key) => run()[key]?.[at];
    const fact = (term, text) =>
      text === null ? null : element("div", {}, element("dt", {}, term), element("dd", {}, text));
    const kl = (key) => (of(key) ? `${numbers.estimate(of(key))} bits/byte` : null);
    const moved = (key) => (numbers.isNumber(of(key)) ? numbers.general(of(key), 4) : null);
    byId("step-numbers").replaceChildren(
      element(
        "dl",
        {},
        [
          fact("Step", numbers.count(stepOf())),
          fact("How good", kl("bits_per_byte")),
          fact("KL from the previous", kl("from_previous")),
          fact("KL from the first", kl("from_first")),
          fact("KL from the last", kl("from_last")),
          fact("‖ΔW‖² from the previous", moved("weights_from_previous")),
          fact("‖ΔW‖² from the first", moved("weights_from_first")),
        ].filter(Boolean),
      ),
    );
    byId("step").setAttribute("aria-valuetext", `step ${numbers.count(stepOf())}`);
  }

  function setStep(at) {
    view.step = at;
    byId("step").value = String(at);
    readout();
    mark();
  }

  /** The checkpoint in all figures, once a frame however fast the slider moves. */
  function mark() {
    cancelAnimationFrame(view.frame);
    view.frame = requestAnimationFrame(() => plots.redraw("training-plot", "lag-plot", "path-plot", "settling-plot"));
  }

  /** One checkpoint after the other; in jumps of a second where motion is not wanted. */
  function play() {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (view.playing) return stop();
    if (view.step >= run().steps.length - 1) setStep(0);
    byId("play").setAttribute("aria-pressed", "true");
    dom.write(byId("play"), "Pause");
    view.playing = setInterval(
      () => {
        if (view.step >= run().steps.length - 1) stop();
        else setStep(view.step + 1);
      },
      still ? 1000 : Math.max(120, 8000 / run().steps.length),
    );
    return undefined;
  }

  function stop() {
    clearInterval(view.playing);
    view.playing = null;
    byId("play").setAttribute("aria-pressed", "false");
    dom.write(byId("play"), "Play");
  }

  function setRun(n) {
    stop();
    view.run = n;
    view.step = run().steps.length - 1;
    view.space = 0;
    byId("step").max = String(view.step);
    byId("run-notes").replaceChildren(...runNotes().map((text) => element("li", {}, text)));
    byId("path-space").replaceChildren(
      ...(run().paths ?? []).map((one, at) => element("option", { value: at }, one.space)),
    );
    byId("path-space").disabled = (run().paths ?? []).length < 2;
    fitPath();
    dom.write(byId("path-note"), pathNote());
    byId("settling-note").replaceChildren(...settlingNotes().map((text) => element("li", {}, text)));
    setStep(view.step);
    plots.redraw("shares-plot");
  }

  function runNotes() {
    const known = run().warmup_known
      ? "as the run says"
      : "one checkpoint spacing after the start, as the run does not say";
    return [`Warm-up (shaded) ends at step ${numbers.count(run().warmup)}: ${known}.`, ...(run().notes ?? [])];
  }

  // ------------------------------------------------------------------------------------------------------------- tables

  const withInterval = (one) =>
    one
      ? `${numbers.estimate(one)}${one.interval?.every(numbers.isNumber) ? ` (${numbers.interval(one.interval)})` : ""}`
      : "n/a";

  function exponentRows() {
    return runs.flatMap((one) => [
      ...(one.exponents ?? []).map((exponent) => ({ run: one.run, ...exponent })),
      ...(one.alpha
        ? [
            {
              run: one.run,
              name: "alpha",
              space: "c_q / c_w",
              estimate: one.alpha,
              probability: one.probability,
            },
          ]
        : []),
    ]);
  }

  function exponentTable() {
    return tables.make({
      caption: "Diffusion exponents: value ± SE (95 % interval)",
      rows: exponentRows(),
      columns: [
        { title: "run", class: "model", cell: (row) => dom.name(row.run), sort: (row) => row.run },
        { title: "exponent", class: "word", cell: (row) => row.name, sort: (row) => row.name },
        { title: "space", class: "word", cell: (row) => row.space },
        {
          title: "value ± SE (95 %)",
          number: true,
          cell: (row) => withInterval(row.estimate) + (row.heavy_tails ? " !" : ""),
          sort: (row) => row.estimate?.value,
        },
        {
          title: "time-averaged ± SE",
          number: true,
          cell: (row) => (row.time_averaged ? numbers.estimate(row.time_averaged) : ""),
        },
        {
          title: "dimension 2/c ± SE",
          number: true,
          cell: (row) => (row.dimension ? numbers.estimate(row.dimension) : ""),
        },
        {
          title: "lags, steps",
          number: true,
          cell: (row) => (row.lags ? `${numbers.count(row.lags[0])} to ${numbers.count(row.lags[1])}` : ""),
        },
        { title: "P(c_q < c_w)", number: true, cell: (row) => numbers.probability(row.probability) },
      ],
    }).box;
  }

  function seedTable() {
    return tables.make({
      caption: "Over seeds: value ± SE (95 % interval)",
      rows: found.seeds,
      columns: [
        {
          title: "runs",
          class: "model",
          cell: (row) =>
row.runs.flatMap((text, n) => [n ? ", " : "", dom.name(text)]),
        },
        { title: "c_q, ± over texts", number: true, cell: (row) => withInterval(row.c_q) },
        { title: "c_q, ± over seeds", number: true, cell: (row) => withInterval(row.c_q_over_seeds) },
        { title: "c_w, ± over seeds", number: true, cell: (row) => withInterval(row.c_w) },
        { title: "alpha, ± over seeds", number: true, cell: (row) => withInterval(row.alpha) },
        { title: "P(c_q < c_w)", number: true, cell: (row) => numbers.probability(row.probability) },
      ],
    }).box;
  }

  function drawTables() {
    if (exponentRows().length) byId("exponents-table").replaceChildren(exponentTable());
    else
      byId("exponents-table").replaceChildren(
        element("p", { class: "quiet" }, "No run has the checkpoints past warm-up that an exponent takes."),
      );
    if (exponentRows().some((row) => row.heavy_tails)) {
      byId("exponents-table").append(
        element(
          "p",
          { class: "note" },
          "!: heavy tails (kurtosis above 10): the interval covers less often than 95 %.",
        ),
      );
    }
    if (found.seeds?.length) byId("seeds-table").replaceChildren(seedTable());
  }

  function register() {
    const say = (what) => () => `${what} of ${run().run}, marked at step ${numbers.count(stepOf())}.`;
    const last = () => run().from_first?.at(-1);
    plots.register("training-plot", {
      make: training,
      on: plots.hover(trainingCard),
      label: () =>
        `KL along training of ${run().run}: from the first to the last checkpoint ${numbers.estimate(last())} bits per byte.`,
    });
    plots.register("lag-plot", {
      make: lag,
      on: plots.hover(lagCard),
      label: () =>
        `Squared distance against lag of ${run().run}: ${exponents()
          .map((one) => `${one.space} ${numbers.estimate(one.estimate)}`)
          .join(", ")}.`,
    });
    plots.register("path-plot", {
      make: pathMake,
      label: say("Path"),
      on: plots.hover(({ customdata }) =>
        numbers.isNumber(customdata) ? [element("strong", {}, `step ${numbers.count(customdata)}`)] : null,
      ),
    });
    plots.register("shares-plot", {
      make: shares,
      on: plots.hover(sharesCard),
      label: () =>
        `Variance on principal components of ${run().run}: ${(run().paths ?? []).map((one) => `${one.space} ${numbers.fixed(100 * one.share[0], 0)} % on the first`).join(", ")}.`,
    });
    plots.register("settling-plot", {
      make: settling,
      on: plots.hover(settlingCard),
      label: () => `Stabilisation of ${run().run}. ${settlingNotes().join(" ")}`,
    });
  }

  function draw() {
    if (!runs.length || !byId("trajectory-run")) return;
    byId("trajectory-run").replaceChildren(...runs.map((one, n) => element("option", { value: n }, one.run)));
    byId("trajectory-run").addEventListener("change", (event) => setRun(Number(event.target.value)));
    byId("step").addEventListener("input", (event) => {
      stop();
      setStep(Number(event.target.value));
    });
    byId("play").addEventListener("click", play);
    byId("path-space").addEventListener("change", (event) => {
      view.space = Number(event.target.value);
      dom.write(byId("path-note"), pathNote());
      plots.redraw("path-plot");
    });
    register();
    setRun(0);
    drawTables();
  }

  return { draw, runs, exponentRows, unitOf };
})();
