"use strict";

/** Tables whose headings sort and whose rows can be filtered; each scrolls inside its own box. */
const tables = (() => {
  const { element } = dom;
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  /** Unknown values last, whichever way. */
  function compare(one, other, direction) {
    const missing = (value) => value === null || value === undefined || Number.isNaN(value);
    if (missing(one) || missing(other)) return Number(missing(one)) - Number(missing(other));
    return direction * (typeof one === "number" ? one - other : collator.compare(one, other));
  }

  /** A heading; a button in it where the table sorts. */
  function heading(one, sort) {
    const attributes = { scope: "col", class: one.number ? "number" : null };
    if (!sort || !one.sort) return element("th", attributes, one.title);
    return element(
      "th",
      attributes,
      dom.button(one.title, () => sort(one), { class: "sort" }),
    );
  }

  function cell(one, row, first) {
    const content = one.cell(row);
    const attributes = { class: one.number ? "number" : (one.class ?? null) };
    return first ? element("th", { scope: "row", ...attributes }, content) : element("td", attributes, content);
  }

  /**
   * A table of `rows`. A column is {title, cell(row): text or element, sort(row): number or text, number: aligned
   * right, class}. `id` names the table, `caption`, text or an element, says what it holds. `group(row)` is what rows
   * have in common that stay together under `heading(row)`, a line of its own. Returns {box, filter(keep)}.
   */
  function make({ columns, rows, caption, id = null, tall = false, head = 0, group = null, heading: over = null }) {
    const body = element("tbody");
    const made = rows.map((row) => ({ row, line: null }));
    let order = made;
    let by = null;
    let direction = 1;

    // Lines are made when they are first shown, so that a long table opens at once.
    const line = (one) => {
      one.line ??= element(
        "tr",
        {},
        columns.map((column, n) => cell(column, one.row, n === head)),
      );
      return one.line;
    };

    const headingOf = (row) =>
      element(
        "tr",
        { class: "group" },
        element("th", { scope: "rowgroup", colspan: columns.length }, element("div", {}, over(row))),
      );
    const groups = group && [...new Set(rows.map(group))];

    let keep = () => true;
    function fill() {
      const shown = order.filter((one) => keep(one.row));
      const within = group ? groups.map((key) => shown.filter((one) => group(one.row) === key)) : [shown];
      body.replaceChildren(
        ...within
          .filter((part) => part.length)
          .flatMap((part) => [...(group ? [headingOf(part[0].row)] : []), ...part.map(line)]),
      );
      return shown.length;
    }

    function sort(column) {
      direction = by === column ? -direction : 1;
      by = column;
      const keys = new Map(made.map((one) => [one, column.sort(one.row)]));
      order = [...made].sort((one, other) => compare(keys.get(one), keys.get(other), direction));
      headings.forEach((th, n) =>
        th.setAttribute("aria-sort", columns[n] !== by ? "none" : direction > 0 ? "ascending" : "descending"),
      );
      fill();
    }

    const sortable = rows.length > 1;
    const headings = columns.map((column) => heading(column, sortable && sort));
    headings.forEach((th, n) => {
      if (sortable && columns[n].sort) th.setAttribute("aria-sort", "none");
    });
    fill();
    const table = element(
      "table",
      { id },
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, headings)),
      body,
    );
    const box = element(
      "div",
      {
        class: tall ? "scroll tall" : "scroll",
        tabindex: "0",
        role: "region",
        "aria-label": typeof caption === "string" ? caption : caption.textContent,
      },
      table,
    );
    return {
      box,
      filter: (kept) => {
        keep = kept;
        return fill();
      },
    };
  }

  return { make };
})();
