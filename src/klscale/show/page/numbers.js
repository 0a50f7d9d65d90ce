/** Numbers as Python prints them. */

/** @returns {value is number} */
export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** Python's `%.{precision}g`. */
export function general(value, precision = 3) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const [digits, power] = value.toExponential(precision - 1).split("e");
  const exponent = Number(power);
  const strip = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (exponent >= -4 && exponent < precision) return strip(value.toFixed(precision - 1 - exponent));
  return `${strip(digits)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
}

/** `0.0231 ± 0.0012`: the standard error to two digits, and the value to the same decimal place. */
export function formatEstimate(value, standardError) {
  if (!isNumber(value)) return "n/a";
  if (!(isNumber(standardError) && standardError > 0)) return general(value);
  const decimals = Math.max(0, 1 - Math.floor(Math.log10(standardError)));
  if (decimals > 7) {
    const [digits, power] = standardError.toExponential(1).split("e");
    return `${general(value)} ± ${digits}e${power[0]}${power.slice(1).padStart(2, "0")}`;
  }
  return `${value.toFixed(decimals)} ± ${standardError.toFixed(decimals)}`;
}

/** An interval in words. */
export const interval = (ends) => (ends ? `${general(ends[0])} to ${general(ends[1])}` : "n/a");

/** A whole number with thousands separated: 12,345. */
export const count = (value) => (isNumber(value) ? Math.round(value).toLocaleString("en-US") : "n/a");

/** `1 pair`, `2 pairs`. */
export const counted = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
