"use strict";

/** The order of things: the map first, the rest when the browser has time, figures when they come near. */
(() => {
  const { byId, element } = dom;
  const { data } = report;

  /** The sections of this report in its order; the others go. */
  function arrange() {
    const content = byId("content");
    const all = new Map([...content.querySelectorAll(":scope > section")].map((section) => [section.id, section]));
    const panelOfPair = byId("pair");
    content.replaceChildren(...data.sections.map((id) => all.get(id)).filter(Boolean));
    if (!panelOfPair.isConnected) (byId("pairs") ?? byId("models"))?.querySelector(".how").after(panelOfPair); // no map
    byId("sections").replaceChildren(
      ...[...content.children].map((section) =>
        element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent),
      ),
    );
  }

  /** The section that is read, in the navigation. */
  function watchSections() {
    const links = new Map([...byId("sections").children].map((link) => [link.hash.slice(1), link]));
    const watch = new IntersectionObserver(
      (entries) => {
        const inView = entries.find((entry) => entry.isIntersecting);
        if (!inView) return;
        for (const [id, link] of links) {
          if (id === inView.target.id) link.setAttribute("aria-current", "true");
          else link.removeAttribute("aria-current");
        }
      },
      { rootMargin: "-20% 0px -70% 0px" },
    );
    for (const section of byId("content").children) watch.observe(section);
  }

  const memory = {
    get: () => {
      try {
        return localStorage.getItem("klscale-theme");
      } catch {
        return null;
      }
    },
    set: (theme) => {
      try {
        localStorage.setItem("klscale-theme", theme);
      } catch {
        /* kept until the page closes */
      }
    },
  };

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    return plots.redrawAll();
  }

  function themes() {
    const select = byId("theme");
    const kept = memory.get();
    if (["light", "dark"].includes(kept)) select.value = kept;
    document.documentElement.dataset.theme = select.value;
    select.addEventListener("change", () => {
      memory.set(select.value);
      setTheme(select.value);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      if (select.value === "auto") plots.redrawAll();
    });
  }

  /** On paper everything is drawn, and in ink on white. */
  function printing() {
    window.addEventListener("beforeprint", () => {
      document.documentElement.classList.add("printing");
      document.documentElement.dataset.theme = "light";
      plots.redrawAll();
      plots.drawAll();
      plots.fitTo(670);
    });
    window.addEventListener("afterprint", () => {
      document.documentElement.classList.remove("printing");
      setTheme(byId("theme").value);
      plots.fitTo(null);
    });
  }

  function keys() {
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented) return;
      plots.hideCard();
      if (selection.selected().length) selection.clear();
    });
    document.addEventListener("scroll", plots.hideCard, { passive: true });
  }

  themes();
  arrange();
  summary.draw();
  map.draw();
  panel.draw();
  if (map.found && byId("map-plot")) plots.draw("map-plot");
  scale.draw();
  heat.draw();
  trajectories.draw();
  layers.draw();
  quantization.draw();
  models.draw();
  downloads.draw();
  watchSections();
  printing();
  keys();
  plots.drawWhenNear();

  window.klscale = {
    formatEstimate: numbers.formatEstimate,
    general: numbers.general,
    pair: report.pair,
    select: selection.select,
    selected: selection.selected,
    clear: selection.clear,
    csv: downloads.csv,
    drawAll: plots.drawAll,
    data,
  };
})();
