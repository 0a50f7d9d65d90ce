"use strict";

/** Ladders of quantized variants. */
const quantization = (() => {
  const { byId, element } = dom;
  const ladders = report.data.quantization?.ladders ?? [];
  const rows = ladders.flatMap(({ rows: own, ...ladder }, n) => own.map((row) => ({ ...row, ...ladder, n })));

  const names = ladders.map((ladder) => report.withoutPrefix(ladder.base));
  const flags = [...new Set(rows.flatMap((row) => row.flags ?? []))];

  /** Rows of the figure: each base's variants under its name, which takes a row itself. */
  const places = [];
  rows.forEach((row, at) => places.push(at ? places[at - 1] + (row.n === rows[at - 1].n ? 1 : 2) : 1));

  /** A kind of quantization has its colour in all ladders, and in all pictures. */
  const kinds = [...new Set(rows.map((row) => row.kind))];
  const looks = report.data.models.looks?.quantization ?? {};
  const colourOf = (kind) =>
    Object.hasOwn(looks, kind) ? plots.onPaper(looks[kind].colour) : plots.series(kinds.indexOf(kind));

  function kindTrace(kind) {
    const at = rows.flatMap((row, place) => (row.kind === kind && row.kl?.value > 0 ? [place] : []));
    const tint = colourOf(kind);
    const side = (end) =>
      at.map((place) => {
        const { value, interval } = rows[place].kl;
        return interval?.every(numbers.isNumber) ? Math.abs(interval[end] - value) : 0;
      });
    return {
      x: at.map((place) => rows[place].kl.value),
      y: at.map((place) => places[place]),
      customdata: at,
      mode: "markers",
      hoverinfo: "none",
      name: plots.label(kind),
      marker: {
        size: 9,
        color: tint,
        symbol: at.map((place) => (rows[place].flags?.length ? "circle-open" : "circle")),
        line: { width: 1.6, color: tint },
      },
      error_x: {
        type: "data",
        symmetric: false,
        array: side(1),
        arrayminus: side(0),
        thickness: 1.4,
        width: 4,
        color: tint,
      },
    };
  }

  function make() {
    const headings = rows.flatMap((row, at) =>
      at && rows[at - 1].n === row.n
        ? []
        : [
            {
              text: plots.label(names[row.n], plots.narrow() ? 36 : 80),
              xref: "paper",
              x: 0,
              xanchor: "left",
              y: places[at] - 1,
              showarrow: false,
              font: { size: 12, color: plots.colour("muted") },
              bgcolor: plots.colour("paper"),
            },
          ],
    );
    return {
      data: kinds.map(kindTrace),
      layout: plots.layout({
        xaxis: plots.logAxis(
          "KL from the base, bits/byte (95 % interval)",
          rows.map((row) => row.kl?.value),
        ),
        yaxis: plots.axis("", {
          tickmode: "array",
          tickvals: places,
          ticktext: rows.map((row) => plots.label(row.kind, 24)),
          range: [places.at(-1) + 0.7, -0.6],
          showgrid: false,
          showline: false,
          ticks: "",
          fixedrange: true,
          tickfont: { size: 12, color: plots.colour("ink") },
        }),
        annotations: headings,
        showlegend: false,
        margin: { l: 60, r: 16, t: 10, b: 50 },
      }),
    };
  }

  function card({ customdata: at }) {
    const row = rows[at];
    if (!row) return null;
    return [
      element("strong", {}, dom.name(dom.shorten(row.name, 90))),
      element("p", {}, `KL ${numbers.estimate(row.kl)} bits/byte, 95 % ${numbers.interval(row.kl.interval)}`),
      row.placed ? element("p", {}, row.placed) : null,
      ...(row.flags ?? []).map((text) => element("p", { class: "warning" }, text)),
    ].filter(Boolean);
  }

  /** A letter for each caution, which the lines under the table say. */
  const letter = (text) => String.fromCharCode(97 + flags.indexOf(text));

  function table() {
    return tables.make({
      caption: "Quantized variants of each model, nearest first",
      rows,
      group: (row) => row.n,
      heading: (row) => [
        dom.name(names[row.n]),
        element("span", { class: "quiet" }, ` itself: ${numbers.estimate(row.base_bits_per_byte)} bits/byte`),
      ],
      columns: [
        { title: "variant", class: "word", cell: (row) => row.kind, sort: (row) => row.kind },
        {
          title: "KL ± SE, bits/byte",
          number: true,
          cell: (row) => numbers.estimate(row.kl),
          sort: (row) => row.kl?.value,
        },
        { title: "95 % interval", number: true, cell: (row) => numbers.intervalOf(row.kl) },
        {
          title: "more than previous ± SE",
          number: true,
          cell: (row) => (row.more_than_previous ? numbers.estimate(row.more_than_previous, { plus: true }) : ""),
        },
        {
          title: "loss ± SE, bits/byte",
          number: true,
          cell: (row) => numbers.estimate(row.bits_per_byte_difference, { plus: true }),
          sort: (row) => row.bits_per_byte_difference?.value,
        },
        { title: "on the scale", class: "prose", cell: (row) => row.placed ?? "" },
        ...(flags.length
          ? [{ title: "notes", class: "word", cell: (row) => (row.flags ?? []).map(letter).join(", ") }]
          : []),
      ],
    }).box;
  }

  const notes = () =>
    element(
      "ul",
      { class: "notes" },
      flags.map((text) => element("li", {}, `${letter(text)}: ${text}`)),
    );

  function draw() {
    if (!rows.length || !byId("quantization-plot")) return;
    byId("quantization-plot").style.height = `${(places.at(-1) + 1) * 28 + 110}px`;
    byId("quantization-table").replaceChildren(table(), notes());
    plots.register("quantization-plot", {
      make,
      on: plots.hover(card),
      label: () =>
        `KL of quantized variants, bits per byte: ${rows
          .slice(0, 12)
          .map((row) => `${row.kind} ${numbers.estimate(row.kl)}`)
          .join("; ")}.`,
    });
  }

  return { draw, rows };
})();
