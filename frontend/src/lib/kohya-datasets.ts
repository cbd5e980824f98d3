import { isTree, type Json, type Tree } from "./json";

const listOf = (value: Json | undefined): Tree[] => (Array.isArray(value) ? value.filter(isTree) : []);

/** Kohya's `datasets` with `folder` as that of the first subset; everything else stays. */
export function withImageDir(datasets: Json | undefined, folder: string): Tree[] {
  const [first = {}, ...others] = listOf(datasets);
  const [subset = {}, ...subsets] = listOf(first.subsets);
  return [{ ...first, subsets: [{ ...subset, image_dir: folder }, ...subsets] }, ...others];
}
