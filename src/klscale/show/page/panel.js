"use strict";

/** The panel of the chosen models: one and its nearest, or the pair. */
const panel = (() => {
  const { element, byId } = dom;
  const { data } = report;
  const NEAREST = 10;

  /** A model's name, and how far off the map it lies if it was placed there later. */
  function chosenModel(letter, i) {
    const offMap = report.offMap(i);
    return [
      element("p", { class: "chosen" }, element("span", { class: "letter" }, letter), dom.name(data.names[i])),
      offMap && element("p", { class: "warning" }, `Placed on the map later. ${offMap.sentence}`),
    ];
  }

  function empty() {
    return [
      element("h3", {}, "A pair"),
      element(
        "p",
        {},
        "Choose two models: on the map, from the search, or in the table of models. Their KL, and what it amounts to, is said here.",
      ),
    ];
  }

  function bits(i) {
    const found = report.bitsPerByte(i);
    return found ? `${numbers.estimate(found)} bits/byte` : "n/a";
  }

  function neighbours(a) {
    const rows = report.pairs ? report.nearest(a, NEAREST) : [];
    if (!rows.length) return null;
    const table = tables.make({
      caption: `Nearest to A, KL ± SE in bits/byte`,
      rows: rows.map(([j]) => j),
      columns: [
        { title: "model", cell: (j) => dom.button(dom.name(data.names[j]), () => selection.asB(j), { class: "link" }) },
        {
          title: "KL ± SE",
          number: true,
          cell: (j) => {
            const pair = report.pair(a, j);
            return numbers.formatEstimate(pair.kl, pair.standard_error);
          },
        },
      ],
    });
    return table.box;
  }

  function one(a) {
    return [
      element("h3", {}, "One model"),
      chosenModel("A", a),
      element("dl", {}, element("dt", {}, "How good"), element("dd", {}, bits(a))),
      neighbours(a),
      element("p", { class: "quiet" }, "The next model that you choose is B."),
      buttons(false),
    ];
  }

  function buttons(two) {
    return element(
      "div",
      { class: "buttons" },
      two ? dom.button("Swap A and B", selection.swap) : null,
      dom.button("Clear", selection.clear),
    );
  }

  function both(a, b) {
    const pair = report.pair(a, b);
    const kl = numbers.formatEstimate(pair?.kl, pair?.standard_error);
    return [
      element("h3", {}, "The pair"),
      chosenModel("A", a),
      chosenModel("B", b),
      element("p", { class: "big" }, "KL ", element("strong", {}, kl), " bits/byte"),
      pair?.kl === null ? element("p", { class: "warning" }, "The two have no texts in common.") : null,
      element("p", { id: "pair-place" }, pair?.placed ?? ""),
      pair?.flags.map((sentence) => element("p", { class: "warning" }, sentence)),
      element(
        "dl",
        {},
        element("dt", {}, "95 % interval"),
        element("dd", {}, pair?.interval ? `${numbers.interval(pair.interval)} bits/byte` : "n/a"),
        element("dt", {}, "Texts"),
        element("dd", {}, numbers.count(pair?.n_texts)),
        element("dt", {}, "A"),
        element("dd", {}, bits(a)),
        element("dt", {}, "B"),
        element("dd", {}, bits(b)),
      ),
      dom.command(report.compareCommand(a, b)),
      buttons(true),
    ];
  }

  function show([a, b]) {
    const box = byId("pair");
    for (const key of ["a", "b", "kl", "standardError"]) delete box.dataset[key];
    if (a !== undefined) box.dataset.a = data.names[a];
    if (b !== undefined) {
      const pair = report.pair(a, b);
      box.dataset.b = data.names[b];
      box.dataset.kl = String(pair?.kl ?? "");
      box.dataset.standardError = String(pair?.standard_error ?? "");
    }
    const content = a === undefined ? empty() : b === undefined ? one(a) : both(a, b);
    const focused = box.contains(document.activeElement);
    box.replaceChildren(...content.flat(Infinity).filter(Boolean));
    if (focused) box.focus({ preventScroll: true }); // what was pressed is gone
  }

  function draw() {
    if (!byId("pair")) return;
    show([]);
    selection.onChange(show);
  }

  return { draw };
})();
