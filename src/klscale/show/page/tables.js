/** Tables come with the page; here their headings sort, their rows are filtered, and their buttons choose models. */

import { K } from "./data.js";
import { byId, element } from "./dom.js";
import { count, counted } from "./numbers.js";
import { asA, asB, onChange, selected } from "./selection.js";

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** What a cell sorts by: the number that it holds, else its text. */
const keyOf = (cell) => (cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort));

/** Unknown values last, whichever way. */
function compare(one, other, direction) {
  const missing = (value) => value === "" || Number.isNaN(value);
  if (missing(one) || missing(other)) return Number(missing(one)) - Number(missing(other));
  return direction * (typeof one === "number" ? one - other : collator.compare(one, other));
}

function sort(table, heading) {
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[heading.cellIndex]) }));
  rows.sort((one, other) => compare(one.key, other.key, direction));
  body.append(...rows.map(({ row }) => row));
}

function makeSortable(table) {
  if (table.tBodies[0].rows.length < 2) return;
  for (const heading of table.tHead.rows[0].cells) {
    if (!heading.textContent) continue;
    const press = element("button", { type: "button", class: "sort", on: { click: () => sort(table, heading) } });
    press.append(...heading.childNodes);
    heading.append(press);
    heading.setAttribute("aria-sort", "none");
  }
}

function filterModels() {
  const rows = [...byId("models-table").tBodies[0].rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
  const field = byId("models-filter");
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const { row, text } of rows) row.hidden = !words.every((word) => text.includes(word));
    const shown = rows.filter(({ row }) => !row.hidden).length;
    byId("models-count").textContent = `${count(shown)} of ${counted(K, "model")}`;
  };
  field.addEventListener("input", filter);
  filter();
}

/** The buttons that are down: those of the chosen models. */
function press() {
  for (const one of document.querySelectorAll("#models-table [aria-pressed=true]")) one.ariaPressed = "false";
  selected().forEach((i, n) => {
    const one = document.querySelector(`#models-table [data-choose="${"AB"[n]}"][data-model="${i}"]`);
    if (one) one.ariaPressed = "true";
  });
}

export function startTables() {
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  if (!byId("models-table")) return;
  filterModels();
  byId("models-table").addEventListener("click", ({ target }) => {
    const { choose, model } = target.dataset;
    if (choose) (choose === "A" ? asA : asB)(Number(model));
  });
  onChange(press);
  press();
}
