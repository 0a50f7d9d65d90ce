"use strict";

/**
 * Figures: drawn when they come near the window, again when the theme changes, with one look. Names reach a figure only
 * through `plain`, and what is shown under the pointer is a card of our own, made of text.
 */
const plots = (() => {
  const figures = new Map(); // id -> {make, said, on, box, drawn}
  const probe = dom.element("span", { hidden: true });
  const narrow = () => window.innerWidth < 640;

  /** Text for plotly.js, which renders a subset of HTML, and takes what stands between dollars for formulas. */
  function plain(text) {
    return dom
      .visible(text)
      .replaceAll("&", "&amp;")
      .replaceAll("<", "&lt;")
      .replaceAll(">", "&gt;")
      .replaceAll("$", "&#36;");
  }

  const label = (text, most = 40) => plain(dom.shorten(text, most));

  /** A colour of page.css as it computes in the theme of now. */
  function colour(name) {
    if (!probe.isConnected) document.body.append(probe);
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  }

  function channels(text) {
    if (text.startsWith("#")) return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    return text
      .match(/[\d.]+/g)
      .slice(0, 3)
      .map(Number);
  }

  function faded(text, alpha) {
    return `rgba(${channels(text).join(", ")}, ${alpha})`;
  }

  /** Relative luminance, as the accessibility guidelines define it. */
  function luminance(rgb) {
    const [r, g, b] = rgb.map((part) => (part <= 10.3 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  /** A colour of the data's. On dark paper it is lightened until it stands out; black becomes nearly white. */
  function onPaper(text) {
    const paper = luminance(channels(colour("paper")));
    if (paper > 0.2) return text;
    let rgb = channels(text);
    if (luminance(rgb) < 0.01) return colour("ink");
    while ((luminance(rgb) + 0.05) / (paper + 0.05) < 5) rgb = rgb.map((part) => part + (255 - part) * 0.1);
    return `rgb(${rgb.map(Math.round).join(", ")})`;
  }

  const palette = report.data.palette ?? ["#000000"];
  const series = (n) => onPaper(palette[n % palette.length]);

  function axis(title, more = {}) {
    const line = colour("rule");
    const grey = colour("muted");
    return {
      title: { text: title, standoff: 10, font: { size: 12, color: grey } },
      gridcolor: colour("grid"),
      linecolor: line,
      tickcolor: line,
      tickfont: { size: 11.5, color: grey },
      zeroline: false,
      showline: true,
      ticks: "outside",
      ticklen: 4,
      automargin: true,
      ...more,
    };
  }

  /** Plain numbers: at 1, 2 and 5, or at decades where `values`, in any depth, span many. */
  function logAxis(title, values, more = {}) {
    let low = Infinity;
    let high = 0;
    for (const value of values.flat(2)) {
      if (!(value > 0)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const decades = high > low ? Math.log10(high / low) : 1;
    return axis(title, {
      type: "log",
      tickformat: "~g",
      dtick: decades > (narrow() ? 2 : 4) ? Math.ceil(decades / 8) : "D2",
      ...more,
    });
  }

  /** log10(1 + step), so that step 0 has a place; ticks say steps. */
  const stepAt = (step) => Math.log10(1 + step);

  /** 0, and what lies between two steps of these digits in each decade. */
  function stepMarks(low, high, digits) {
    const marks = [0];
    for (let decade = 1; decade <= high; decade *= 10) {
      for (const digit of digits) if (digit * decade >= low && digit * decade <= high) marks.push(digit * decade);
    }
    return marks;
  }

  function stepAxis(steps, more = {}) {
    const last = Math.max(...steps, 1);
    const first = Math.min(...steps.filter((step) => step > 0), last);
    const marks = stepMarks(first / 2.5, last * 1.05, last / first > 300 || narrow() ? [1] : [1, 2, 5]);
    return axis("training step (log<sub>10</sub>(1 + step))", {
      tickmode: "array",
      tickvals: marks.map(stepAt),
      ticktext: marks.map((step) => numbers.size(step)),
      range: [stepAt(Math.min(...steps)) - 0.06, stepAt(last) + 0.06],
      ...more,
    });
  }

  function layout(more = {}) {
    const coarse = matchMedia("(pointer: coarse)").matches; // a finger that scrolls the page must not zoom
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
      paper_bgcolor: colour("paper"),
      plot_bgcolor: colour("paper"),
      hovermode: "closest",
      dragmode: coarse ? false : "zoom",
      margin: { l: 48, r: 16, t: 12, b: 44 },
      legend: legend(),
      showlegend: true,
      ...more,
    };
  }

  /** Below the axes, in lines. */
  function legend(more = {}) {
    return {
      orientation: "h",
      x: 0,
      y: 0,
      yref: "container",
      yanchor: "bottom",
      xanchor: "left",
      font: { size: 11.5, color: colour("ink") },
      itemsizing: "constant",
      ...more,
    };
  }

  /** 1-2-5 marks of a log range, decades alone where it is long; [log10, text]. */
  function logMarks(low, high) {
    const digits = high - low > 3 ? [1] : [1, 2, 5];
    const marks = [];
    for (let decade = Math.floor(low); decade <= high; decade += 1) {
      for (const digit of digits) {
        const at = decade + Math.log10(digit);
        if (at >= low - 1e-9 && at <= high + 1e-9) marks.push([at, numbers.general(digit * 10 ** decade, 3)]);
      }
    }
    return marks.length > 1 ? marks : [low, high].map((at) => [at, numbers.general(10 ** at, 2)]);
  }

  function marksOf(scale, low, high) {
    if (scale === "log") return logMarks(low, high);
    if (scale !== "steps") return null;
    const marks = stepMarks(10 ** low - 1, 10 ** high - 1, [1]).map((step) => [stepAt(step), numbers.size(step)]);
    return marks.filter(([at]) => at >= low - 1e-9 && at <= high + 1e-9);
  }

  /** Where there is little width a colour bar lies above its figure. */
  function lying() {
    return narrow() ? { orientation: "h", x: 0.5, xanchor: "center", y: 1.04, yanchor: "bottom", len: 1 } : {};
  }

  /** Logs of values, of 0 that of the smallest other one: it is drawn as dark. What is not known stays null. */
  function logs(values) {
    const least = values.reduce((low, value) => (value > 0 && value < low ? value : low), Infinity);
    const floor = Number.isFinite(least) ? Math.log10(least) : 0;
    return values.map((value) => (value > 0 ? Math.log10(value) : value === 0 ? floor : null));
  }

  /** Colours by value, dark to light; of values as they are drawn, whose `scale` is log, steps, or none. */
  function colourBar(title, shown, scale) {
    let low = Infinity;
    let high = -Infinity;
    for (const value of shown) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (!Number.isFinite(low)) low = 0;
    if (!(low < high)) high = low + 1; // one value alone lies at the dark end
    const marks = marksOf(scale, low, high);
    const bar = {
      title: { text: title, side: narrow() ? "top" : "right", font: { size: 11.5, color: colour("muted") } },
      thickness: 12,
      len: 0.85,
      outlinewidth: 0,
      tickfont: { size: 11, color: colour("muted") },
      ...(marks
        ? { tickmode: "array", tickvals: marks.map(([at]) => at), ticktext: marks.map(([, text]) => text) }
        : {}),
    };
    return { colorscale: "Cividis", cmin: low, cmax: high, showscale: true, colorbar: { ...bar, ...lying() } };
  }

  /** A figure without axes that says why there is none. */
  function nothing(text) {
    const said = { text, xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, font: { color: colour("muted") } };
    return { data: [], layout: layout({ xaxis: { visible: false }, yaxis: { visible: false }, annotations: [said] }) };
  }

  function vertical(x, more = {}) {
    return {
      type: "line",
      xref: "x",
      yref: "paper",
      x0: x,
      x1: x,
      y0: 0,
      y1: 1,
      line: { color: colour("accent"), width: 1.5 },
      ...more,
    };
  }

  /** A band between two curves: two traces, without a place in the legend. */
  function band(x, low, high, tint, more = {}) {
    const edge = {
      x,
      mode: "lines",
      line: { width: 0 },
      hoverinfo: "skip",
      showlegend: false,
      connectgaps: false,
      ...more,
    };
    return [
      { ...edge, y: low },
      { ...edge, y: high, fill: "tonexty", fillcolor: faded(tint, 0.16) },
    ];
  }

  /** `make()` gives {data, layout}; `label()` what the figure says to who cannot see it; `on` plotly's listeners by event;
   * `click(event)` is called for clicks. */
  function register(id, { make, label: text, on = {}, click = null }) {
    const box = dom.byId(id);
    if (!box) return;
    const said = () => box.setAttribute("aria-label", dom.visible(text()));
    box.setAttribute("role", "img");
    said();
    figures.set(id, { make, said, on, box, drawn: false });
    if (click) listenToClicks(box, click);
  }

  const CONFIG = {
    responsive: true,
    displaylogo: false,
    displayModeBar: false,
    showSendToCloud: false,
    showTips: false,
    doubleClick: "reset",
    scrollZoom: false,
  };

  async function draw(id) {
    const figure = figures.get(id);
    if (!figure || !figure.box.isConnected) return;
    const first = !figure.drawn;
    figure.drawn = true;
    const made = figure.make();
    figure.said();
    const done = Plotly.react(figure.box, made.data, made.layout, CONFIG);
    if (first) for (const [event, listener] of Object.entries(figure.on)) figure.box.on(event, listener); // no click is lost
    await done;
  }

  /** Draws again what was drawn before: the others will be drawn as things then are. */
  const redraw = (...ids) => Promise.all(ids.filter((id) => figures.get(id)?.drawn).map(draw));
  const drawn = (id) => Boolean(figures.get(id)?.drawn);
  const redrawAll = () => redraw(...figures.keys());
  const drawAll = () => Promise.all([...figures].filter(([, figure]) => !figure.drawn).map(([id]) => draw(id)));

  function drawWhenNear() {
    const near = new IntersectionObserver(
      (entries) => {
        for (const entry of entries.filter((one) => one.isIntersecting)) {
          near.unobserve(entry.target);
          if (!drawn(entry.target.id)) draw(entry.target.id);
        }
      },
      { rootMargin: "500px" },
    );
    for (const figure of figures.values()) near.observe(figure.box);
  }

  /** Figures at the width of a sheet, and back. */
  function fitTo(width) {
    return Promise.all(
      [...figures.values()]
        .filter((figure) => figure.drawn)
        .map((figure) =>
          width
            ? Plotly.relayout(figure.box, {
                width: Math.min(width, figure.box.clientWidth),
                height: figure.box.clientHeight,
              })
            : Plotly.relayout(figure.box, { width: null, height: null, autosize: true }),
        ),
    );
  }

  function download(id, format) {
    const { box } = figures.get(id);
    const { clientWidth: width, clientHeight: height } = box;
    return Plotly.downloadImage(box, {
      format,
      width,
      height,
      scale: format === "png" ? 2 : 1,
      filename: `klscale-${id}`,
    });
  }

  /**
   * `click(event)` where a figure is pressed and let go at one place. plotly.js forgets a click while it draws, and where
   * events come fast it takes what lay under the pointer before.
   */
  function listenToClicks(box, click) {
    let pressed = null;
    box.addEventListener("pointerdown", (event) => {
      pressed = event.isPrimary && event.button === 0 ? event : null;
    });
    window.addEventListener("pointercancel", () => {
      pressed = null;
    });
    window.addEventListener("pointerup", (event) => {
      const still =
        pressed && Math.hypot(event.clientX - pressed.clientX, event.clientY - pressed.clientY) < 5 && box._fullLayout;
      pressed = null;
      if (still) click(event);
    });
  }

  /** Where an event is on the axes of a figure: {x, y} in pixels, and the axes, which turn these to data and back. */
  function placeOf(id, { clientX, clientY }) {
    const { box } = figures.get(id);
    const { xaxis, yaxis } = box._fullLayout;
    const { left, top } = box.getBoundingClientRect();
    return { x: clientX - left - xaxis._offset, y: clientY - top - yaxis._offset, xaxis, yaxis };
  }

  let webgl;
  /** Whether this browser draws in three dimensions. */
  function hasWebGL() {
    if (webgl === undefined) {
      const canvas = document.createElement("canvas");
      webgl = Boolean(canvas.getContext("webgl2") ?? canvas.getContext("webgl"));
    }
    return webgl;
  }

  // ------------------------------------------------------------------------------------------- the card at the pointer

  const card = dom.byId("hovercard");

  function showCard(event, ...children) {
    card.replaceChildren(...children);
    card.hidden = false;
    const { clientX = 0, clientY = 0 } = event ?? {};
    const { width, height } = card.getBoundingClientRect();
    const left = clientX + 16 + width > window.innerWidth ? clientX - 16 - width : clientX + 16;
    card.style.left = `${Math.max(8, Math.min(left, window.innerWidth - width - 8))}px`;
    card.style.top = `${Math.max(8, Math.min(clientY + 16, window.innerHeight - height - 8))}px`;
  }

  const hideCard = () => {
    card.hidden = true;
  };

  /** Listeners that show `content(point)`, elements or null, at the pointer. */
  function hover(content) {
    return {
      plotly_hover: ({ points, event }) => {
        const children = content(points[0], event);
        if (children) showCard(event, ...children);
      },
      plotly_unhover: hideCard,
    };
  }

  return {
    plain,
    label,
    colour,
    faded,
    onPaper,
    series,
    axis,
    logAxis,
    stepAxis,
    stepAt,
    layout,
    legend,
    nothing,
    vertical,
    band,
    narrow,
    logs,
    colourBar,
    lying,
    register,
    draw,
    redraw,
    redrawAll,
    drawAll,
    drawn,
    drawWhenNear,
    fitTo,
    download,
    placeOf,
    hasWebGL,
    hover,
    hideCard,
  };
})();
