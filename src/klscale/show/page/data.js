/** The data of the page, decoded once: every number that is shown comes from here. */

import { formatEstimate, general, isNumber } from "./numbers.js";

/** @type {Report} */
export const data = JSON.parse(document.getElementById("data")?.textContent ?? "{}");
export const K = data.models.length;
const KINDS = { float32: Float32Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };

/**
 * A column as it travels, to an array of numbers. Typed arrays are little endian wherever browsers run.
 * @param {Packed} packed
 * @returns {ArrayLike<number>}
 */
export function column(packed) {
  if ("constant" in packed) return new Float32Array(packed.length ?? 0).fill(packed.constant ?? NaN);
  const [[kind, base64]] = Object.entries(packed);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let n = 0; n < text.length; n += 1) bytes[n] = text.charCodeAt(n);
  return new KINDS[kind](bytes.buffer);
}

export const pairs = {
  value: column(data.pairs.value),
  standard_error: column(data.pairs.standard_error),
  critical_value: column(data.pairs.critical_value),
  estimator: column(data.pairs.estimator),
  whole_texts: column(data.pairs.whole_texts),
  whole_texts_standard_error: column(data.pairs.whole_texts_standard_error),
  on_scale: column(data.pairs.on_scale),
  n_texts: column(data.pairs.n_texts),
  flags: column(data.pairs.flags),
};

/** The setting of each pair that was measured for one, by place of the pair. @type {Map<number, Kind>} */
const kinds = new Map();
for (const one of data.settings) {
  const [a, b] = [column(one.a), column(one.b)];
  for (let n = 0; n < a.length; n += 1) if (!kinds.has(position(a[n], b[n]))) kinds.set(position(a[n], b[n]), one);
}

/** The place of pair (i, j) in the upper triangle by rows. */
function position(i, j) {
  const [low, high] = i < j ? [i, j] : [j, i];
  return low * K - (low * (low + 1)) / 2 + (high - low - 1);
}

/** KL of two models in bits/byte; NaN where it is not known. */
export const kl = (i, j) => (i === j ? 0 : pairs.value[position(i, j)]);

/**
 * 95 % interval on the log scale of the pair at a place, as wide at most as Python makes it.
 * @returns {[number, number] | null}
 */
export function intervalAt(at) {
  const value = pairs.value[at];
  if (Number.isNaN(value)) return null;
  if (value === 0) return [0, 0];
  const exponent = Math.min((pairs.critical_value[at] * pairs.standard_error[at]) / value, data.pairs.widest);
  return [value / Math.exp(exponent), value * Math.exp(exponent)];
}

/** Where a KL lies on the scale, in words, `same` if it is the one that is shown; null where nothing can be said. */
function placed(i, j, value, same) {
  const own = data.place.own[i < j ? `${i},${j}` : `${j},${i}`];
  if (own !== undefined || !(value > 0)) return own ?? null;
  const yardstick = data.place.yardsticks.find((row) => row.up_to === null || value <= row.up_to);
  if (!yardstick) return data.place.holds ? null : "No scale is known for these texts.";
  const ratio = value / yardstick.median;
  const times = ratio >= 0.1 && ratio < 10 ? ratio.toFixed(1) : general(ratio, 2);
  const both = same ? "" : `${general(value)} against `;
  const source = same ? yardstick.source : `both ${yardstick.source}`;
  return `${times} times the median of '${yardstick.setting}' (${both}${general(yardstick.median)}, ${source})`;
}

/**
 * Which of the two is better, 0 or 1, null where this cannot be told, and the words for it; null where pairs are many.
 * @returns {[number | null, string] | null}
 */
function better(i, j, at) {
  const [place, words] = data.better[at] ?? [null, ""];
  return words === "" ? null : [place === null || i < j ? place : 1 - place, words];
}

const known = (value) => (isNumber(value) ? value : null);

/**
 * All that is known of a pair; `kl` is null where the two have no texts in common.
 * @returns {Pair | null}
 */
export function pair(i, j) {
  if (i === j || !(i < K && j < K)) return null;
  const at = position(i, j);
  return {
    kl: known(pairs.value[at]),
    standard_error: known(pairs.standard_error[at]),
    interval: intervalAt(at),
    estimator: data.pairs.estimators[pairs.estimator[at]],
    whole_texts: known(pairs.whole_texts[at]),
    whole_texts_standard_error: known(pairs.whole_texts_standard_error[at]),
    on_scale: known(pairs.on_scale[at]),
    placed: placed(i, j, pairs.on_scale[at], pairs.on_scale[at] === pairs.value[at]),
    setting: kinds.get(at)?.words ?? null,
    better: better(i, j, at),
    flags: data.pairs.flag_texts.filter(([bit]) => pairs.flags[at] & bit).map(([, sentence]) => sentence),
    n_texts: known(pairs.n_texts[at]),
  };
}

/** KL ± standard error of two models. */
export function printed(i, j) {
  const found = pair(i, j);
  return formatEstimate(found?.kl, found?.standard_error);
}

/** The models nearest to `i`, nearest first. */
export function nearest(i, most) {
  const others = [...Array(K).keys()].filter((j) => j !== i && !Number.isNaN(kl(i, j)));
  return others.sort((one, other) => kl(i, one) - kl(i, other)).slice(0, most);
}

/** @type {Attribute[]} */
export const columns = data.models.columns;
export const columnOf = (key) => columns.find((one) => one.key === key);
export const isNumeric = (one) => one.kind !== "category" && one.kind !== "text";

/** A model's entry in a column as text; null where it is not known. */
export const shown = (one, i) => one.shown?.[i] ?? one.values[i] ?? null;
