"use strict";

/** The data of the page, decoded once; every number that is shown comes from here. */
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const K = data.models?.length ?? 0;
  const KINDS = { float32: Float32Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };

  function bytesOf(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let n = 0; n < text.length; n += 1) bytes[n] = text.charCodeAt(n);
    return bytes;
  }

  /** A column as it travels, to an array of numbers. Typed arrays are little endian wherever browsers run. */
  function column(packed) {
    if (!packed) return new Float32Array(0);
    if (Array.isArray(packed)) return packed;
    if ("constant" in packed) return new Float32Array(packed.length).fill(packed.constant ?? NaN);
    const [kind] = Object.keys(KINDS).filter((key) => key in packed);
    return new KINDS[kind](bytesOf(packed[kind]).buffer);
  }

  const pairs =
    data.pairs &&
    Object.fromEntries(
      ["value", "standard_error", "critical_value", "n_texts", "flags"].map((key) => [key, column(data.pairs[key])]),
    );

  /** The place of pair (i, j) in the upper triangle by rows. */
  function position(i, j) {
    const [low, high] = i < j ? [i, j] : [j, i];
    return low * K - (low * (low + 1)) / 2 + (high - low - 1);
  }

  function kl(i, j) {
    return i === j ? 0 : pairs.value[position(i, j)];
  }

  /** 95 % interval on the log scale; two models that agree on every text have no width. */
  function logInterval(value, standardError, critical) {
    if (value === 0) return [0, 0];
    const factor = Math.exp((critical * standardError) / value);
    return Number.isFinite(factor) ? [value / factor, value * factor] : null;
  }

  function sentences(bits) {
    return (data.pairs.flag_texts ?? []).filter(([bit]) => bits & bit).map(([, sentence]) => sentence);
  }

  function times(value, median) {
    const ratio = value / median;
    return `${ratio >= 0.1 && ratio < 10 ? numbers.fixed(ratio, 1) : numbers.general(ratio, 2)} times`;
  }

  /** Where a KL lies on the scale, in words; null where nothing can be said. */
  function placed(i, j, value) {
    const scale = data.place;
    if (!scale || !numbers.isNumber(value)) return null;
    const own = scale.own?.[i < j ? `${i},${j}` : `${j},${i}`];
    if (own !== undefined) return own;
    if (value === 0) return null;
    if (!scale.holds) return "No scale is known for these texts.";
    const yardstick = scale.yardsticks.find((row) => row.up_to === null || value <= row.up_to);
    if (!yardstick) return null;
    const { setting, median, source } = yardstick;
    return `${times(value, median)} the median of '${setting}' (${numbers.general(median, 3)}, ${source})`;
  }

  const known = (value) => (numbers.isNumber(value) ? value : null);

  const intervalAt = (at) => logInterval(pairs.value[at], pairs.standard_error[at], pairs.critical_value[at]);

  /** All that is known of a pair; `kl` is null where the two have no texts in common. */
  function pair(i, j) {
    if (!pairs || i === j || !(i in data.names) || !(j in data.names) || i >= K || j >= K) return null;
    const at = position(i, j);
    const value = pairs.value[at];
    const error = pairs.standard_error[at];
    return {
      kl: known(value),
      standard_error: known(error),
      interval: intervalAt(at),
      placed: placed(i, j, value),
      flags: sentences(pairs.flags[at]),
      n_texts: known(pairs.n_texts[at]),
    };
  }

  /** The models nearest to `i`, as [model, KL], nearest first. */
  function nearest(i, most) {
    const found = [];
    for (let j = 0; j < K; j += 1) if (j !== i && !Number.isNaN(kl(i, j))) found.push([j, kl(i, j)]);
    return found.sort((one, other) => one[1] - other[1]).slice(0, most);
  }

  /** What a command calls a model. */
  const reference = (i) => data.refs?.[i] ?? data.names[i];

  /** The command that compares two models of this report's store. */
  const compareCommand = (i, j) =>
    dom.commandLine(["klscale", "compare", ...(data.options ?? [])], [i, j].map(reference));

  /** A name without what all names begin with. */
  function withoutPrefix(name) {
    const prefix = data.prefix ?? "";
    return prefix && name.startsWith(prefix) && name.length > prefix.length ? name.slice(prefix.length) : name;
  }

  const brief = (i) => withoutPrefix(data.names[i]);

  /** What is known of a model that was placed on a kept map later; null of the others. */
  function offMap(i) {
    const found = data.map?.off_map?.[i] ?? null;
    return typeof found === "string" ? { sentence: found } : found;
  }

  const columns = data.models?.columns ?? [];
  const isNumeric = (one) => one.kind !== "category" && one.kind !== "text";
  const columnOf = (key) => columns.find((one) => one.key === key);

  /** A model's entry in a column, as text; null where it is not known. */
  function shown(one, i) {
    const value = one.values[i];
    if (value === null || value === undefined || Number.isNaN(value)) return null;
    if (one.kind === "estimate") return numbers.formatEstimate(value, one.standard_errors?.[i]);
    if (one.kind === "category" || one.kind === "text") return String(value);
    const text =
      value >= 1e5 ? numbers.size(value) : Number.isInteger(value) ? numbers.count(value) : numbers.general(value, 4);
    return one.unit ? `${text} ${one.unit}` : text;
  }

  function bitsPerByte(i) {
    const one = columnOf("bits_per_byte");
    return one && numbers.isNumber(one.values[i])
      ? { value: one.values[i], standard_error: one.standard_errors?.[i] }
      : null;
  }

  return {
    data,
    K,
    compareCommand,
    withoutPrefix,
    brief,
    offMap,
    isNumeric,
    columns,
    column,
    columnOf,
    shown,
    bitsPerByte,
    pairs,
    position,
    kl,
    pair,
    intervalAt,
    nearest,
  };
})();
