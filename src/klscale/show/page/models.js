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
    return {
      title: `${column.title}${estimate ? " ± SE" : ""}${unit}`,
      number: report.isNumeric(column),
      class: report.isNumeric(column)
        ? "word"
        : wide(column.values.map((value) => report.withoutPrefix(String(value ?? "")))),
      cell: (i) => {
        const text = estimate || !column.unit ? report.shown(column, i) : report.shown({ ...column, unit: null }, i);
        return text === null ? "" : report.isNumeric(column) ? text : dom.name(report.withoutPrefix(text));
      },
      sort: (i) => column.values[i],
    };
  }

  /** What all models have in common is said once, above the table. */
  const isCommon = ({ values }) => K > 1 && values[0] !== null && values.every((value) => value === values[0]);

  /** Runs and parents with which all names begin are told by these. */
  const isTold = ({ key, values }) =>
    ["run", "parent"].includes(key) &&
    values.every((value, i) => !value || report.brief(i).startsWith(report.withoutPrefix(value)));

  /** Bits per byte first. */
  function shownColumns() {
    const shown = report.columns.filter((column) => !isTold(column) && !isCommon(column));
    const first = shown.filter((column) => column.key === "bits_per_byte");
    return [...first, ...shown.filter((column) => !first.includes(column))];
  }

  function caption() {
    const common = report.columns.filter((column) => isCommon(column) && !isTold(column));
    const said = common.map((column) => `${column.title} ${report.shown(column, 0)}`);
    return said.length ? `Models; of all: ${said.join(", ")}` : "Models";
  }

  const ONE_LINE = 48;
  const wide = (texts) => (texts.some((text) => text.length > ONE_LINE) ? "model" : "word");

  function draw() {
    const place = byId("models-box");
    if (!place || !data.models) return;
    const made = tables.make({
      id: "models-table",
      caption: caption(),
      tall: K > 15,
      head: 1,
      rows: [...Array(K).keys()],
      columns: [
        { title: "choose", cell: chooser },
        {
          title: "model",
          class: wide(data.names.map((_, i) => report.brief(i)).slice(0, K)),
          cell: (i) => dom.name(report.brief(i)),
          sort: (i) => data.names[i],
        },
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
