"use strict";

/** Elements and their text are made here, and nowhere from markup: whatever a model is called, all of it is seen. */
const dom = (() => {
  const byId = (id) => document.getElementById(id);

  /** `text` with its code points that are invisible or change direction shown as their numbers. */
  function visible(text) {
    return String(text).replace(
      /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
      (mark) => `⟨U+${mark.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`,
    );
  }

  /** What an element says. */
  function write(box, text) {
    box.textContent = visible(text);
  }

  /**
   * An element with attributes and children; strings become visible text. `on` holds listeners, `dataset`
   * data-attributes, and an attribute that is false or null is left out.
   */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
      else if (key === "dataset") Object.assign(made.dataset, value);
      else if (value === true) made.setAttribute(key, "");
      else if (key === "aria-label") made.setAttribute(key, visible(value));
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, String(value));
    }
    const shown = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
    made.append(...shown.map((child) => (child instanceof Node ? child : visible(child))));
    return made;
  }

  /** A name that others chose, isolated from the direction of what surrounds it. */
  function name(text) {
    return element("bdi", { class: "name" }, text);
  }

  function button(label, listener, attributes = {}) {
    return element("button", { type: "button", on: { click: listener }, ...attributes }, label);
  }

  /** At most `most` characters of a name, the middle left out: names differ at their ends. */
  function shorten(text, most) {
    const marks = [...visible(text)];
    if (marks.length <= most) return marks.join("");
    const head = Math.ceil((most - 1) * 0.4);
    return [...marks.slice(0, head), "…", ...marks.slice(head - most + 1)].join("");
  }

  const hasInvisible = (text) => visible(text) !== text;

  /** `text` as one word of a shell command, also where it holds quotes or control characters. */
  function shellQuote(text) {
    if (/^[\w@%+=:,./-]+$/.test(text)) return text;
    if (!hasInvisible(text)) return `'${text.replaceAll("'", `'"'"'`)}'`;
    const escaped = [...text].map((mark) => {
      if (mark === "'" || mark === "\\") return "\\" + mark;
      return hasInvisible(mark) ? `\\U${mark.codePointAt(0).toString(16).padStart(8, "0")}` : mark;
    });
    return `$'${escaped.join("")}'`;
  }

  /** The command line of these words; refs that begin with a hyphen are no options. */
  function commandLine(words, refs) {
    const end = refs.some((ref) => ref.startsWith("-")) ? ["--"] : [];
    return [...words, ...end, ...refs].map(shellQuote).join(" ");
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
        write(made, "Copied");
        setTimeout(() => write(made, "Copy"), 1500);
      },
      { class: "copy", "aria-label": "Copy the command" },
    );
    return element("div", { class: "command" }, element("code", {}, text), made);
  }

  return { byId, element, name, button, visible, write, shorten, shellQuote, commandLine, command };
})();
