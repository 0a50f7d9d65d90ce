"use strict";

/** What stands at the top and at the end: facts, sentences, method. */
const summary = (() => {
  const { element, byId } = dom;
  const { data } = report;

  function fact(term, ...text) {
    return element("div", {}, element("dt", {}, term), element("dd", {}, ...text));
  }

  function day(text) {
    const date = new Date(text);
    return Number.isNaN(date.getTime()) ? text : date.toISOString().slice(0, 16).replace("T", " ") + " UTC";
  }

  function drawHeader() {
    const { texts } = data;
    document.title = dom.visible(data.title);
    dom.write(byId("title"), data.title);
    const of = [`${numbers.counted(texts.n_texts, "text")}, mean ${numbers.fixed(texts.mean_bytes, 1)} bytes`];
    if (numbers.isNumber(texts.n_documents)) of.push(` of ${numbers.counted(texts.n_documents, "document")}`);
    of.push(numbers.isNumber(texts.clip) ? `, clip ${numbers.general(texts.clip, 4)} nats` : ", no clip");
    byId("facts").replaceChildren(
      fact("Models", numbers.count(report.K)),
      fact("Texts", dom.name(texts.name), element("span", { class: "quiet" }, ` (${texts.id})`)),
      fact("Of these", ...of),
      fact("Made", element("time", { datetime: data.date }, day(data.date)), ` by klscale ${data.version}`),
      data.store ? fact("Store", element("code", {}, dom.name(data.store))) : "",
    );
  }

  function drawLines() {
    if (!byId("summary-lines")) return;
    const titles = Object.fromEntries(data.sections.map((id) => [id, byId(id)?.querySelector("h2")?.textContent]));
    byId("summary-lines").replaceChildren(
      ...(data.summary ?? []).map(({ section, text }) =>
        element(
          "li",
          {},
          element("span", {}, text),
          " ",
          titles[section] ? element("a", { href: `#${section}` }, titles[section]) : null,
        ),
      ),
    );
  }

  function definitions(rows) {
    return element(
      "dl",
      { class: "definitions" },
      rows.map(([term, ...texts]) => [element("dt", {}, term), ...texts.map((text) => element("dd", {}, text))]),
    );
  }

  function part(title, ...content) {
    return element("div", { class: "part" }, element("h3", {}, title), ...content);
  }

  /** A source: the page's only addresses, and only those of the web. */
  function source([title, address]) {
    const safe = /^https:\/\//.test(address);
    return element(
      "li",
      {},
      title,
      ": ",
      safe ? element("a", { href: address, rel: "noopener noreferrer", target: "_blank" }, address) : address,
    );
  }

  function drawMethod() {
    const { method } = data;
    if (!method || !byId("method-body")) return;
    const formula = ([what, text, from]) => [
      element("dt", {}, what),
      element(
        "dd",
        {},
        element("code", { class: "formula" }, text),
        from ? element("span", { class: "quiet" }, ` ${from}`) : null,
      ),
    ];
    const parts = [
      method.rows?.length && part("What was done", definitions(method.rows)),
      method.formulas?.length &&
        part("Formulas", element("dl", { class: "definitions" }, method.formulas.map(formula))),
      method.footguns?.length &&
        part(
          "What the numbers do not say",
          element(
            "ul",
            { class: "lines" },
            method.footguns.map((text) => element("li", {}, text)),
          ),
        ),
      method.commands?.length && part("Commands", method.commands.map(dom.command)),
      method.sources?.length && part("Sources", element("ul", { class: "lines" }, method.sources.map(source))),
    ];
    byId("method-body").replaceChildren(...parts.filter(Boolean));
  }

  function draw() {
    drawHeader();
    drawLines();
    drawMethod();
    byId("colophon").replaceChildren(
      `klscale ${data.version}. This page holds its data and its scripts; it fetches nothing.`,
    );
  }

  return { draw };
})();
