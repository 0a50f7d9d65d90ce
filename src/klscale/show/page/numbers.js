"use strict";

/** Numbers as Python prints them: rounding is exact, and halves go to the even digit. */
const numbers = (() => {
  /** The decimal digits of a positive number, all that a double can need, and the exponent of the first. */
  function expand(value) {
    const [mantissa, exponent] = value.toExponential(100).split("e");
    return { digits: mantissa.replace(".", ""), exponent: Number(exponent) };
  }

  /** The first `keep` digits as an integer, rounded half to even. */
  function roundDigits(digits, keep) {
    if (keep < 0) return 0n;
    const all = digits.padEnd(keep + 1, "0");
    const kept = BigInt(all.slice(0, keep) || "0");
    const rest = all.slice(keep).replace(/0+$/, "");
    const up = rest > "5" || (rest === "5" && kept % 2n === 1n);
    return up ? kept + 1n : kept;
  }

  function sign(value) {
    return value < 0 || Object.is(value, -0) ? "-" : "";
  }

  function notFinite(value) {
    return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  }

  /** Python's `%.{decimals}f`. */
  function fixed(value, decimals) {
    if (!Number.isFinite(value)) return notFinite(value);
    const { digits, exponent } = expand(Math.abs(value));
    const rounded = roundDigits(digits, exponent + 1 + decimals)
      .toString()
      .padStart(decimals + 1, "0");
    const point = rounded.length - decimals;
    return sign(value) + rounded.slice(0, point) + (decimals ? "." + rounded.slice(point) : "");
  }

  /** The digits and the exponent after rounding to `count` significant ones; 9.99 may become 10. */
  function significant(value, count) {
    const { digits, exponent } = expand(Math.abs(value));
    const rounded = roundDigits(digits, count).toString().padStart(count, "0");
    return rounded.length > count
      ? { digits: rounded.slice(0, count), exponent: exponent + 1 }
      : { digits: rounded, exponent };
  }

  function withExponent(digits, exponent) {
    const size = String(Math.abs(exponent)).padStart(2, "0");
    return (digits.length > 1 ? `${digits[0]}.${digits.slice(1)}` : digits) + `e${exponent < 0 ? "-" : "+"}${size}`;
  }

  /** Python's `%.{decimals}e`. */
  function scientific(value, decimals) {
    if (!Number.isFinite(value)) return notFinite(value);
    const { digits, exponent } = significant(value, decimals + 1);
    return sign(value) + withExponent(digits, exponent);
  }

  /** Python's `%.{precision}g`. */
  function general(value, precision = 3) {
    if (!Number.isFinite(value)) return notFinite(value);
    const { digits, exponent } = significant(value, precision);
    const short = digits.replace(/0+$/, "") || "0";
    if (exponent < -4 || exponent >= precision) return sign(value) + withExponent(short, exponent);
    if (exponent < 0) return `${sign(value)}0.${"0".repeat(-exponent - 1)}${short}`;
    const whole = digits.slice(0, exponent + 1);
    const rest = digits.slice(exponent + 1).replace(/0+$/, "");
    return sign(value) + whole + (rest ? "." + rest : "");
  }

  /** Python's `%#.2g`, for what is neither huge nor tiny: 0.40, 3.0. */
  function twoDigits(value) {
    return isNumber(value) && value > 0 ? fixed(value, Math.max(0, 1 - significant(value, 2).exponent)) : general(value, 2);
  }

  function isNumber(value) {
    return typeof value === "number" && Number.isFinite(value);
  }

  /** So many decimals give a standard error two digits. */
  const decimalsOf = (standardError) => Math.max(0, 1 - Math.floor(Math.log10(standardError)));

  /** `0.0231 ± 0.0012`: the standard error to two digits, and the value to the same decimal place. */
  function formatEstimate(value, standardError, { plus = false } = {}) {
    if (!isNumber(value)) return "n/a";
    if (plus) return (sign(value) ? "\u2212" : "+") + formatEstimate(Math.abs(value), standardError);
    if (!(isNumber(standardError) && standardError > 0)) return general(value, 3);
    const decimals = decimalsOf(standardError);
    if (decimals > 7) return `${general(value, 3)} ± ${scientific(standardError, 1)}`;
    return `${fixed(value, decimals)} ± ${fixed(standardError, decimals)}`;
  }

  /** A probability; what rounds to certainty is not called certain. */
  function probability(value) {
    if (!isNumber(value)) return "";
    return value > 0.999 ? "> 0.999" : value < 0.001 ? "< 0.001" : fixed(value, 3);
  }

  /** An ESTIMATE of the data: value ± standard error. */
  function estimate(found, options) {
    return found ? formatEstimate(found.value, found.standard_error, options) : "n/a";
  }

  /** A 95 % interval in words. */
  function interval(ends) {
    return ends && ends.every(isNumber) ? `${general(ends[0])} to ${general(ends[1])}` : "n/a";
  }

  /** The interval of an ESTIMATE, to the decimal place of its standard error. */
  function intervalOf(found) {
    const decimals = found?.standard_error > 0 ? decimalsOf(found.standard_error) : 8;
    return decimals > 7 || !found.interval?.every(isNumber)
      ? interval(found?.interval)
      : found.interval.map((end) => fixed(end, decimals)).join(" to ");
  }

  /** A whole number with thousands separated: 12,345. */
  function count(value) {
    return isNumber(value) ? Math.round(value).toLocaleString("en-US") : "n/a";
  }

  /** `1 pair`, `2 pairs`. */
  function counted(value, word) {
    return `${count(value)} ${word}${value === 1 ? "" : "s"}`;
  }

  /** A large number as it is spoken of: 1.4B, 410M, 130k. */
  function size(value) {
    if (!isNumber(value)) return "n/a";
    const units = [
      [1e12, "T"],
      [1e9, "B"],
      [1e6, "M"],
      [1e3, "k"],
    ];
    const [unit, letter] = units.find(([least]) => Math.abs(value) >= least) ?? [1, ""];
    return general(value / unit, 3) + letter;
  }

  return {
    fixed,
    general,
    twoDigits,
    scientific,
    formatEstimate,
    probability,
    estimate,
    interval,
    intervalOf,
    isNumber,
    count,
    counted,
    size,
  };
})();
