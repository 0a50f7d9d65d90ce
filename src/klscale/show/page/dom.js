/** Elements and their text are made here, and nowhere from markup: names are data. */

/** @returns {any} */
export const byId = (id) => document.getElementById(id);

/**
 * An element with attributes and children; strings become text. `on` holds listeners, `dataset` data-attributes; an
 * attribute that is false or null is left out, and so is a child.
 * @returns {any}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (key === "dataset") Object.assign(made.dataset, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, String(value));
  }
  const kept = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  made.append(...kept);
  return made;
}

/** An element of SVG. @returns {any} */
export function svgElement(tag, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}

/** A name that others chose, isolated from the direction of what surrounds it. */
export const name = (text) => element("bdi", { class: "name" }, text);

export const button = (label, listener, attributes = {}) =>
  element("button", { type: "button", on: { click: listener }, ...attributes }, label);

/** At most `most` characters of a name, the middle left out: names differ at their ends. */
export function shorten(text, most) {
  const marks = [...text];
  if (marks.length <= most) return text;
  const head = Math.ceil((most - 1) * 0.4);
  return [...marks.slice(0, head), "…", ...marks.slice(head - most + 1)].join("");
}

/** `text` to the clipboard; pages from disk may be refused the modern way. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = element("textarea", { class: "offscreen" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

/** A button that copies a command. */
export function copier(text) {
  const made = button(
    "Copy",
    async () => {
      await copy(text);
      made.textContent = "Copied";
      setTimeout(() => {
        made.textContent = "Copy";
      }, 1500);
    },
    { class: "copy", "aria-label": "Copy the command" },
  );
  return made;
}
