"use strict";

/** The table of all models. */
const models = (() => {
  const { byId, element } = dom;
  const { data, K } = report;

  const choosers = new Map(); // of the lines that were made: model -> [button A, button B]

  function chooser(i) {
    const buttons = [
      ["A", selection.asA],
      ["B", selection.asB],
    ].map(([letter, choose]) =>
      dom.button(letter, () => choose(i), { "aria-label": `Choose ${data.names[i]} as ${letter}` }),
    );
    choosers.set(i, buttons);
    press(i);
    return element("span", { class: "choose" }, buttons);
  }

  /** Which of a model's buttons are down. */
  function press(i) {
    const chosen = selection.selected();
    choosers.get(i)?.forEach((button, n) => button.setAttribute("aria-pressed", String(chosen[n] === i)));
  }

  function columnOf(column) {
    const unit = column.unit && column.unit !== column.title ? `, ${column.unit}` : "";
    const estimate = column.kind === "estimate";
    const long = !report.isNumeric(column) && column.values.some((value) => String(value ?? "").length > 24);
    return {
      title: `${column.title}${estimate ? " ± SE" : ""}${unit}`,
      number: report.isNumeric(column),
      class: long ? "model" : "word",
      cell: (i) => {
        const text = estimate || !column.unit ? report.shown(column, i) : report.shown({ ...column, unit: null }, i);
        return text === null ? "" : report.isNumeric(column) ? text : dom.name(text);
      },
      sort: (i) => column.values[i],
    };
  }

  /** Bits per byte first; a run that each of its models' names begins with is said by these. */
  function shownColumns() {
    const told = (column) =>
      column.key === "run" && column.values.every((run, i) => !run || report.brief(i).startsWith(run));
    const first = report.columns.filter((column) => column.key === "bits_per_byte");
    return [...first, ...report.columns.filter((column) => !first.includes(column) && !told(column))];
  }

  function draw() {
    const place = byId("models-box");
    if (!place || !data.models) return;
    const made = tables.make({
      id: "models-table",
      caption: "Models",
      tall: K > 15,
      head: 1,
      rows: [...Array(K).keys()],
      columns: [
        { title: "choose", cell: chooser },
        { title: "model", class: "model", cell: (i) => dom.name(report.brief(i)), sort: (i) => data.names[i] },
        ...shownColumns().map(columnOf),
      ],
    });
    place.replaceChildren(made.box);
    const texts = [...Array(K).keys()].map((i) =>
      [data.names[i], ...report.columns.map((column) => report.shown(column, i) ?? "")].join("\n").toLowerCase(),
    );
    const filter = () => {
      const words = byId("models-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      const shown = made.filter((i) => words.every((word) => texts[i].includes(word)));
      dom.write(byId("models-count"), `${numbers.count(shown)} of ${numbers.counted(K, "model")}`);
    };
    byId("models-filter").addEventListener("input", filter);
    filter();
    selection.onChange(() => [...choosers.keys()].forEach(press));
  }

  return { draw };
})();
