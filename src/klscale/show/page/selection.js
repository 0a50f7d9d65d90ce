"use strict";

/** The chosen models: A, then B, then over again. */
const selection = (() => {
  let chosen = [];
  const listeners = [];

  function set(models) {
    chosen = models;
    for (const listener of listeners) listener([...chosen]);
  }

  /** Next in turn; the same model again is no pair. */
  function select(i) {
    if (!Number.isInteger(i) || i < 0 || i >= report.K) return;
    if (chosen.length === 1 && chosen[0] !== i) set([chosen[0], i]);
    else set([i]);
  }

  /** `i` as A, whatever B is. */
  function asA(i) {
    set(chosen[1] === undefined || chosen[1] === i ? [i] : [i, chosen[1]]);
  }

  /** `i` as B; without an A it is the first one chosen. */
  function asB(i) {
    set(chosen[0] === undefined || chosen[0] === i ? [i] : [chosen[0], i]);
  }

  return {
    select,
    asA,
    asB,
    both: (i, j) => set([i, j]),
    clear: () => set([]),
    swap: () => set([...chosen].reverse()),
    selected: () => [...chosen],
    onChange: (listener) => {
      listeners.push(listener);
    },
  };
})();
