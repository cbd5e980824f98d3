/** Configurations for the task `sample`. */
import { at, type Json, type Tree } from "./json";

/** The prompts and sampling settings of a run, with `grid` as the values to compare. */
export function sampleConfig(config: Tree, grid: Tree): Tree {
  const inference = (key: string) => at(config, ["inference", key]);
  const size = inference("image_dim");
  const [width, height] = Array.isArray(size) ? size : [];
  const prompts = inference("prompts");
  const settings: Record<string, Json | undefined> = {
    prompts: Array.isArray(prompts) && prompts.length > 0 ? prompts : [""],
    steps: inference("steps"),
    cfg: inference("cfg"),
    width,
    height,
    seed: at(config, ["training", "master_seed"]),
    sampler: at(config, ["preview", "sampler"]),
  };
  const present = Object.entries(settings).filter((each): each is [string, Json] => each[1] != null);
  return { ...Object.fromEntries(present), grid };
}

export const hasAverage = (config: Tree): boolean => at(config, ["ema", "decay"]) != null;
