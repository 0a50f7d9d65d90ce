/** The chosen models: A, then B, then over again. */

import { data, K } from "./data.js";

/** @type {number[]} */
let chosen = data.chosen;
const listeners = [];

function set(models) {
  chosen = models;
  for (const listener of listeners) listener(selected());
}

/** Next in turn; the same model again is no pair. */
export function select(i) {
  if (!Number.isInteger(i) || i < 0 || i >= K) return;
  if (chosen.length === 1 && chosen[0] !== i) set([chosen[0], i]);
  else set([i]);
}

/** `i` as A, whatever B is. */
export const asA = (i) => set(chosen[1] === undefined || chosen[1] === i ? [i] : [i, chosen[1]]);

/** `i` as B; without an A it is the first one chosen. */
export const asB = (i) => set(chosen[0] === undefined || chosen[0] === i ? [i] : [chosen[0], i]);

export const both = (i, j) => set([i, j]);
export const clear = () => set([]);
export const swap = () => set([...chosen].reverse());
export const selected = () => [...chosen];
export const onChange = (listener) => listeners.push(listener);
