/**
 * Figures: drawn when they come near the window, again when the theme changes, with one look. Names reach a figure only
 * through `plain`, and what is shown under the pointer is a card of our own, made of text.
 */

import { byId, element, shorten } from "./dom.js";
import { general } from "./numbers.js";

const figures = new Map(); // id -> {make, said, on, box, drawn}
const probe = element("span", { hidden: true });
export const narrow = () => window.innerWidth < 640;

/** Text for plotly.js, which renders a subset of HTML, and takes what stands between dollars for formulas. */
export function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("$", "&#36;");
}

export const label = (text, most = 40) => plain(shorten(text, most));

/** A colour of page.css as it computes in the theme of now. */
export function colour(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

/** How wide figures write these texts, in pixels. */
export function textWidths(texts, size) {
  const context = /** @type {any} */ (document.createElement("canvas").getContext("2d"));
  context.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return texts.map((text) => context.measureText(text).width);
}

/** A colour of `colour`'s with this much of it. */
export const faded = (text, alpha) =>
  `rgba(${text
    .match(/[\d.]+/g)
    .slice(0, 3)
    .join(", ")}, ${alpha})`;

/** The colour of a category in the theme of now. */
export function tint(look) {
  probe.style.color = `light-dark(${look.colour}, ${look.dark})`;
  if (!probe.isConnected) document.body.append(probe);
  return getComputedStyle(probe).color;
}

export function axis(title, more = {}) {
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

/** log10(1 + step), so that step 0 has a place; ticks say steps. */
export const stepAt = (step) => Math.log10(1 + step);

/** Steps 0, 1, 10, 100, ... up to `high`. */
const decadesTo = (high) => [0, ...Array.from({ length: Math.floor(Math.log10(high)) + 1 }, (_, n) => 10 ** n)];

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export function layout(more = {}) {
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
export function legend(more = {}) {
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
      if (at >= low - 1e-9 && at <= high + 1e-9) marks.push([at, general(digit * 10 ** decade, 3)]);
    }
  }
  return marks.length > 1 ? marks : [low, high].map((at) => [at, general(10 ** at, 2)]);
}

function marksOf(scale, low, high) {
  if (scale === "log") return logMarks(low, high);
  if (scale !== "steps") return null;
  const marks = decadesTo(Math.max(1, 10 ** high - 1)).map((step) => [stepAt(step), compact.format(step)]);
  return marks.filter(([at]) => Number(at) >= low - 1e-9 && Number(at) <= high + 1e-9);
}

/** Where there is little width a colour bar lies above its figure. */
export function lying() {
  return narrow() ? { orientation: "h", x: 0.5, xanchor: "center", y: 1.04, yanchor: "bottom", len: 1 } : {};
}

/** Logs of values, of 0 that of the smallest other one: it is drawn as dark. What is not known stays null. */
export function logs(values) {
  const least = values.reduce((low, value) => (value > 0 && value < low ? value : low), Infinity);
  const floor = Number.isFinite(least) ? Math.log10(least) : 0;
  return values.map((value) => (value > 0 ? Math.log10(value) : value === 0 ? floor : null));
}

/** Colours by value, dark to light; of values as they are drawn, whose `scale` is log, steps, or none. */
export function colourBar(title, shown, scale) {
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
    ...(marks ? { tickmode: "array", tickvals: marks.map(([at]) => at), ticktext: marks.map(([, text]) => text) } : {}),
  };
  return { colorscale: "Cividis", cmin: low, cmax: high, showscale: true, colorbar: { ...bar, ...lying() } };
}

/** A figure as a file. */
export async function downloadFigure(id, format) {
  if (!isDrawn(id)) await draw(id);
  const { clientWidth: width, clientHeight: height } = figures.get(id).box;
  const scale = format === "png" ? 2 : 1;
  return Plotly.downloadImage(figures.get(id).box, { format, width, height, scale, filename: `klscale-${id}` });
}

/** `make()` gives {data, layout}; `label()` what the figure says to who cannot see it; `on` plotly's listeners by event;
 * `click(event)` is called for clicks. */
export function register(id, { make, label: text, on = {}, click = /** @type {any} */ (null) }) {
  const box = byId(id);
  if (!box) return;
  const said = () => box.setAttribute("aria-label", text());
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

export async function draw(id) {
  const figure = figures.get(id);
  if (!figure?.box.isConnected) return;
  const first = !figure.drawn;
  figure.drawn = true;
  const made = figure.make();
  figure.said();
  const done = Plotly.react(figure.box, made.data, made.layout, CONFIG);
  if (first) for (const [event, listener] of Object.entries(figure.on)) figure.box.on(event, listener); // no click is lost
  await done;
}

/** Draws again what was drawn before: the others will be drawn as things then are. */
export const redraw = (...ids) => Promise.all(ids.filter((id) => figures.get(id)?.drawn).map(draw));
export const isDrawn = (id) => Boolean(figures.get(id)?.drawn);
export const redrawAll = () => redraw(...figures.keys());
export const drawAll = () => Promise.all([...figures].filter(([, figure]) => !figure.drawn).map(([id]) => draw(id)));

export function drawWhenNear() {
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        near.unobserve(entry.target);
        if (!isDrawn(entry.target.id)) draw(entry.target.id);
      }
    },
    { rootMargin: "500px" },
  );
  for (const figure of figures.values()) near.observe(figure.box);
}

/** Figures at the width of a sheet, and back. */
export function fitTo(width) {
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
export function placeOf(id, { clientX, clientY }) {
  const { box } = figures.get(id);
  const { xaxis, yaxis } = box._fullLayout;
  const { left, top } = box.getBoundingClientRect();
  return { x: clientX - left - xaxis._offset, y: clientY - top - yaxis._offset, xaxis, yaxis };
}

let webgl;
/** Whether this browser draws in three dimensions. */
export function hasWebGL() {
  if (webgl === undefined) {
    const canvas = document.createElement("canvas");
    webgl = Boolean(canvas.getContext("webgl2") ?? canvas.getContext("webgl"));
  }
  return webgl;
}

// ------------------------------------------------------------------------------------------- the card at the pointer

const card = byId("hovercard");

function showCard(event, ...children) {
  card.replaceChildren(...children);
  card.hidden = false;
  const { clientX = 0, clientY = 0 } = event ?? {};
  const { width, height } = card.getBoundingClientRect();
  const left = clientX + 16 + width > window.innerWidth ? clientX - 16 - width : clientX + 16;
  card.style.left = `${Math.max(8, Math.min(left, window.innerWidth - width - 8))}px`;
  card.style.top = `${Math.max(8, Math.min(clientY + 16, window.innerHeight - height - 8))}px`;
}

export const hideCard = () => {
  card.hidden = true;
};

/** Listeners that show `content(point)`, elements or null, at the pointer. */
export function hover(content) {
  return {
    plotly_hover: ({ points, event }) => {
      const children = content(points[0], event);
      if (children) showCard(event, ...children);
    },
    plotly_unhover: hideCard,
  };
}
