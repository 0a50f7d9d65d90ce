/** What `klscale.show.reports` puts into the page. */

interface Packed {
  constant?: number | null;
  length?: number;
  float32?: string;
  uint8?: string;
  uint16?: string;
  uint32?: string;
}

interface Kind {
  words: string;
  a: Packed;
  b: Packed;
}

interface Attribute {
  key: string;
  title: string;
  kind: "category" | "text" | "log" | "number" | "steps" | "estimate";
  values: any[];
  shown?: (string | null)[];
}

interface Look {
  colour: string;
  dark: string;
  symbol: string;
  name: string;
}

interface Legend {
  looks: Record<string, Look>;
  others: string | null;
}

interface Yardstick {
  setting: string;
  median: number;
  source: string;
  up_to: number | null;
}

interface Run {
  steps: number[];
  readout: [string, string][][];
  marks: ([number, number, number, number] | null)[][];
}

interface ModelMap {
  method: string;
  pca: number[][];
  tsne2: number[][] | null;
  tsne3: number[][] | null;
  share: number[];
  unit: string;
  perplexity: number | null;
  notes: string[];
  added: number[];
  off_map: Record<number, string>;
  threads: { models: number[]; kl: (number | null)[] }[];
}

interface Report {
  title: string;
  sections: string[];
  names: string[];
  brief: string[];
  labels: string[];
  refs: string[];
  words: string[];
  command: string;
  chosen: number[];
  others: { names: string[]; nearest: Packed; kl: Packed; standard_error: Packed } | null;
  models: { length: number; columns: Attribute[]; legends: Record<string, Legend> };
  pairs: Record<
    | "value"
    | "standard_error"
    | "critical_value"
    | "estimator"
    | "whole_texts"
    | "whole_texts_standard_error"
    | "on_scale"
    | "n_texts"
    | "flags",
    Packed
  > & {
    estimators: string[];
    widest: number;
    flag_texts: [number, string][];
    order: number[];
    merges: [number, number, number][];
  };
  place: { holds: boolean; by: string; yardsticks: Yardstick[]; own: Record<string, string | null> };
  better: [number | null, string][];
  settings: Kind[];
  ruler: Record<"left" | "right" | "low" | "high" | "top" | "bottom", number> | null;
  map: ModelMap | null;
  runs: Run[];
  files: Record<string, string>;
}

interface Pair {
  kl: number | null;
  standard_error: number | null;
  interval: [number, number] | null;
  estimator: string;
  whole_texts: number | null;
  whole_texts_standard_error: number | null;
  on_scale: number | null;
  placed: string | null;
  setting: string | null;
  better: [number | null, string] | null;
  flags: string[];
  n_texts: number | null;
}

interface Window {
  klscale: unknown;
}

declare const Plotly: any;
