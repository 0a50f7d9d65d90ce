"use strict";

/** Elements are made here and nowhere from markup: whatever a model is called, it is text. */
const dom = (() => {
  const byId = (id) => document.getElementById(id);

  /**
   * An element with attributes and children; strings become text. `on` holds listeners, `dataset` data-attributes,
   * and an attribute that is false or null is left out.
   */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
      else if (key === "dataset") Object.assign(made.dataset, value);
      else if (value === true) made.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, String(value));
    }
    made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return made;
  }

  /** A name that others chose: isolated, and with what would hide or turn parts of it made visible. */
  function name(text) {
    return element("bdi", { class: "name" }, visible(text));
  }

  function button(label, listener, attributes = {}) {
    return element("button", { type: "button", on: { click: listener }, ...attributes }, label);
  }

  /** `text` with its code points that are invisible or change direction shown as their numbers. */
  function visible(text) {
    return String(text).replace(
      /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
      (mark) => `⟨U+${mark.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`,
    );
  }

  /** At most `most` characters of a name, the middle left out: names differ at their ends. */
  function shorten(text, most) {
    const marks = [...visible(text)];
    if (marks.length <= most) return marks.join("");
    const head = Math.ceil((most - 1) * 0.4);
    return [...marks.slice(0, head), "…", ...marks.slice(head - most + 1)].join("");
  }

  /** Names without the directories or organisation that every one of them begins with. */
  function withoutCommonPrefix(names) {
    const parts = names.map((text) => text.split("/"));
    let shared = 0;
    while (parts.length && parts.every((part) => part.length > shared + 1 && part[shared] === parts[0][shared]))
      shared += 1;
    return parts.map((part) => part.slice(shared).join("/"));
  }

  const hasInvisible = (text) => visible(text) !== text;

  /** `text` as one word of a shell command, also where it holds quotes or control characters. */
  function shellQuote(text) {
    if (/^[\w@%+=:,./-]+$/.test(text)) return text;
    if (!hasInvisible(text)) return `'${text.replaceAll("'", `'"'"'`)}'`;
    const escaped = [...text].map((mark) => {
      if (mark === "'" || mark === "\\") return "\\" + mark;
      return hasInvisible(mark) ? `\\u${mark.codePointAt(0).toString(16).padStart(4, "0")}` : mark;
    });
    return `$'${escaped.join("")}'`;
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

  /** A command line with a button that copies it. */
  function command(text) {
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
    return element("div", { class: "command" }, element("code", {}, text), made);
  }

  return { byId, element, name, button, visible, shorten, withoutCommonPrefix, shellQuote, command };
})();
