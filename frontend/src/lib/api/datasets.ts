import { keepPreviousData, type QueryClient, queryOptions } from "@tanstack/react-query";
import { asked, fetchJson, type RunView, type Schemas } from "./client";

/** How a bucket is reached; what is not given is Amazon's own, or the environment's. */
export interface Storage {
  endpoint?: string;
  region?: string;
  anonymous?: boolean;
}

export type StoreVerdict = Schemas["StoreVerdict"];

export const datasetHref = (name: string) => `/datasets/?name=${encodeURIComponent(name)}`;

export interface DataSet {
  name: string;
  kind: "folder" | "jsonl" | "bucket" | string;
  path: string | null;
  url: string | null;
  images_dir: string | null;
  is_link: boolean;
  /** The folder that a JSONL was built from, where that is recorded. */
  source: string | null;
}

/** A data set of its own, with the JSONLs that were built from it. */
export interface Shelved {
  dataset: DataSet;
  jsonls: DataSet[];
}

/** One entry for a folder and the JSONLs of it, which are the same images and captions. */
export function shelved(all: readonly DataSet[]): Shelved[] {
  const folders = new Set(all.filter((each) => each.kind === "folder").map((each) => each.path));
  const isMade = (each: DataSet) => each.kind === "jsonl" && each.source !== null && folders.has(each.source);
  return all
    .filter((each) => !isMade(each))
    .map((dataset) => ({
      dataset,
      jsonls: all.filter((each) => isMade(each) && dataset.kind === "folder" && each.source === dataset.path),
    }));
}

export type Freshness = Schemas["FreshnessView"];

export interface Scan {
  is_running: boolean;
  phase: string;
  num_done: number;
  finished: number;
  error: string;
}

export interface DatasetImage {
  item: string;
  file: string;
  caption: string;
  version: string;
  is_tags: boolean;
  width: number | null;
  height: number | null;
  size: number | null;
  problem: string;
  url: string;
}

export interface ImagePage {
  total: number;
  images: DatasetImage[];
  scan: Scan;
}

export interface Summary {
  images: number;
  captioned: number;
  problems: number;
  bytes: number;
  scan: Scan;
}

export interface TagPage {
  captions: number;
  distinct: number;
  tags: { tag: string; count: number }[];
}

export interface Caption {
  item: string;
  caption: string;
  version: string;
  is_tags: boolean;
  problem: string;
}

export interface Trashed {
  id: string;
  name: string;
  time: number;
}

export interface Edit {
  id: string;
  time: number;
  title: string;
  num_changed: number;
  undoes: string | null;
  /** False: it was cancelled while it wrote. */
  is_whole: boolean;
}

export interface EditPreview {
  num_matching: number;
  num_changed: number;
  num_unreadable: number;
  examples: { item: string; before: string; after: string }[];
  version: string;
}

/** Filters of images. */
export interface Wanted {
  text?: string;
  tags?: string[];
  has_caption?: boolean;
  has_problem?: boolean;
}

export type Operation = { kind: string; [key: string]: unknown };

const base = (name: string) => `/api/datasets/${encodeURIComponent(name)}`;

function queryOf(wanted: Wanted): URLSearchParams {
  const query = new URLSearchParams();
  if (wanted.text) query.set("text", wanted.text);
  for (const tag of wanted.tags ?? []) query.append("tags", tag);
  if (wanted.has_caption !== undefined) query.set("has_caption", String(wanted.has_caption));
  if (wanted.has_problem !== undefined) query.set("has_problem", String(wanted.has_problem));
  return query;
}

export const PAGE = 100;

export const datasets = queryOptions({
  queryKey: ["datasets"],
  queryFn: () => fetchJson<DataSet[]>("/api/datasets"),
  refetchInterval: 10_000,
});

/** How a JSONL compares with the folder that it was built from. */
export const freshness = (name: string) =>
  queryOptions({
    queryKey: ["freshness", name],
    queryFn: () => fetchJson<Freshness>(`${base(name)}/freshness`),
    refetchInterval: 15_000,
  });

export const trash = queryOptions({ queryKey: ["trash"], queryFn: () => fetchJson<Trashed[]>("/api/trash") });

export const summary = (name: string) =>
  queryOptions({
    queryKey: ["dataset", name, "summary"],
    queryFn: () => fetchJson<Summary>(`${base(name)}/summary`),
    refetchInterval: (query) => (query.state.data?.scan.is_running ? 1000 : 15_000),
  });

export const imagePage = (name: string, wanted: Wanted, page: number) =>
  queryOptions({
    queryKey: ["dataset", name, "images", wanted, page],
    queryFn: () => {
      const query = queryOf(wanted);
      query.set("skip", String(page * PAGE));
      query.set("limit", String(PAGE));
      return fetchJson<ImagePage>(`${base(name)}/images?${query}`);
    },
    staleTime: 10_000,
    refetchInterval: (query) => (query.state.data?.scan.is_running ? 1500 : 15_000),
    placeholderData: keepPreviousData,
  });

export const tags = (name: string, wanted: Wanted) =>
  queryOptions({
    queryKey: ["dataset", name, "tags", wanted],
    queryFn: () => fetchJson<TagPage>(`${base(name)}/tags?${queryOf(wanted)}&limit=150`),
    placeholderData: keepPreviousData,
    staleTime: 10_000,
  });

export const edits = (name: string) =>
  queryOptions({
    queryKey: ["dataset", name, "edits"],
    queryFn: () => fetchJson<Edit[]>(`${base(name)}/edits`),
  });

export interface EditStage {
  title: string;
  phase: "scanning" | "reading" | "writing";
  num_done: number;
  num_total: number;
}

/** How far the edit is that is being made, by whomever; null: none is. */
export const editStage = (name: string) =>
  queryOptions({
    queryKey: ["edit-stage", name],
    queryFn: async () => (await fetchJson<{ edit: EditStage | null }>(`${base(name)}/edits/progress`)).edit,
    refetchInterval: 500,
  });

/** Of letters; a browser keeps 64 KiB alive, of all requests together. */
const MOST_KEPT_ALIVE = 16_000;

export async function saveCaption(
  name: string,
  item: string,
  caption: string,
  version: string,
): Promise<Caption> {
  const place = item.split("/").map(encodeURIComponent).join("/");
  const body = JSON.stringify({ caption });
  const init: RequestInit = {
    method: "PUT",
    headers: { "content-type": "application/json", "if-match": `"${version}"` },
    body,
    // It goes on where the tab is closed over it.
    keepalive: body.length < MOST_KEPT_ALIVE,
  };
  return asked<Caption>(`${base(name)}/captions/${place}`, init);
}

/** Puts what was saved into all that was read, which is then read anew. */
export function keepCaption(client: QueryClient, name: string, made: Caption): void {
  const { item, caption, version, is_tags } = made;
  client.setQueriesData<ImagePage>({ queryKey: ["dataset", name, "images"] }, (page) =>
    page?.images.some((each) => each.item === item)
      ? {
          ...page,
          images: page.images.map((each) =>
            each.item === item ? { ...each, caption, version, is_tags } : each,
          ),
        }
      : page,
  );
  changed(client, name);
}

/** Everything that was read of a data set is read again, and so is what is compared with it. */
export function changed(client: QueryClient, name: string): void {
  void client.invalidateQueries({ queryKey: ["dataset", name] });
  void client.invalidateQueries({ queryKey: ["freshness"] });
}

export const datasetApi = {
  create: (body: { name: string; path?: string; url?: string; storage?: Storage }) =>
    fetchJson<DataSet>("/api/datasets", body),
  bring: (body: { name: string; url?: string; repo?: string; revision?: string; below?: string }) =>
    fetchJson<{ id: string }>("/api/datasets/import", body),
  update: (name: string) => fetchJson<{ run: RunView | null }>(`${base(name)}/update`, {}),
  remove: (name: string) => fetchJson<Trashed>(base(name), undefined, "DELETE"),
  restore: (id: string) => fetchJson<DataSet>(`/api/trash/${id}/restore`, {}),
  preview: (name: string, operation: Operation, wanted: Wanted) =>
    fetchJson<EditPreview>(`${base(name)}/edits/preview`, { operation, filter: wanted, examples: 20 }),
  edit: (name: string, operation: Operation, wanted: Wanted, version: string) =>
    fetchJson<Edit>(`${base(name)}/edits`, { operation, filter: wanted, version }),
  cancelEdit: (name: string) => fetchJson<unknown>(`${base(name)}/edits/cancel`, {}),
  undo: (name: string, id: string) => fetchJson<Edit>(`${base(name)}/edits/${id}/undo`, { is_partial: true }),
};
