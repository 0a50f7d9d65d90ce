"use strict";

/** The table of all models. */
const models = (() => {
  const { byId, element } = dom;
  const { data, K } = report;

  function chooser(i) {
    return element("span", { class: "choose" },
      dom.button("A", () => selection.asA(i), { "aria-label": `Choose ${data.names[i]} as A` }),
      dom.button("B", () => selection.asB(i), { "aria-label": `Choose ${data.names[i]} as B` }));
  }

  function columnOf(column) {
    const unit = column.unit && column.unit !== column.title ? `, ${column.unit}` : "";
    const estimate = column.kind === "estimate";
    const long = !report.isNumeric(column) && column.values.some((value) => String(value ?? "").length > 24);
    return {
      title: `${column.title}${estimate ? " ± SE" : ""}${unit}`, number: report.isNumeric(column), class: long ? "model" : "word",
      cell: (i) => {
        const text = estimate || !column.unit ? report.shown(column, i) : report.shown({ ...column, unit: null }, i);
        return text === null ? "" : report.isNumeric(column) ? text : dom.name(text);
      },
      sort: (i) => column.values[i],
    };
  }

  function draw() {
    const place = byId("models-box");
    if (!place || !data.models) return;
    const made = tables.make({
      id: "models-table", caption: "Models", tall: K > 15, head: 1, rows: [...Array(K).keys()], columns: [
        { title: "choose", cell: chooser },
        { title: "model", class: "model", cell: (i) => dom.name(data.names[i]), sort: (i) => data.names[i] },
        ...report.columns.map(columnOf),
      ],
    });
    place.replaceChildren(made.box);
    const texts = [...Array(K).keys()].map((i) =>
      [data.names[i], ...report.columns.map((column) => report.shown(column, i) ?? "")].join("\n").toLowerCase());
    const filter = () => {
      const words = byId("models-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      const shown = made.filter((i) => words.every((word) => texts[i].includes(word)));
      byId("models-count").textContent = `${numbers.count(shown)} of ${numbers.counted(K, "model")}`;
    };
    byId("models-filter").addEventListener("input", filter);
    filter();
  }

  return { draw };
})();
