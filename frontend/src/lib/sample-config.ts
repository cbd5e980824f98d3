/** Configurations for the task `sample`. */
import { at, type Json, type Tree } from "./json";

/** The prompts and sampling settings of a run, with `grid` as the values to compare. */
export function drawing(config: Tree, grid: Tree): Tree {
  const told = (key: string) => at(config, ["inference", key]);
  const size = told("image_dim");
  const [width, height] = Array.isArray(size) ? size : [];
  const prompts = told("prompts");
  const given: Record<string, Json | undefined> = {
    prompts: Array.isArray(prompts) && prompts.length > 0 ? prompts : [""],
    steps: told("steps"),
    cfg: told("cfg"),
    width,
    height,
    seed: at(config, ["training", "master_seed"]),
    sampler: at(config, ["preview", "sampler"]),
  };
  const known = Object.entries(given).filter((each): each is [string, Json] => each[1] != null);
  return { ...Object.fromEntries(known), grid };
}

export const hasAverage = (config: Tree): boolean => at(config, ["ema", "decay"]) != null;
