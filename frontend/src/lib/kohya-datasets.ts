import { isTree, type Json, type Tree } from "./json";

const listOf = (value: Json | undefined): Tree[] => (Array.isArray(value) ? value.filter(isTree) : []);

/** Return Kohya's `datasets` with `folder` as the image folder of the first subset. */
export function withImageDir(datasets: Json | undefined, folder: string): Tree[] {
  const [first = {}, ...others] = listOf(datasets);
  const [subset = {}, ...subsets] = listOf(first.subsets);
  return [{ ...first, subsets: [{ ...subset, image_dir: folder }, ...subsets] }, ...others];
}
