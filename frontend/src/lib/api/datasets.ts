import { keepPreviousData, type QueryClient, queryOptions } from "@tanstack/react-query";
import { api, type Schemas, unwrap } from "./client";

export type Dataset = Schemas["DatasetView"];
export type DatasetImage = Schemas["ImageView"];
export type ImagePage = Schemas["ImagePage"];
export type ImageFilter = Schemas["ImageFilter"];
export type Summary = Schemas["DatasetSummary"];
export type Caption = Schemas["CaptionView"];
export type Edit = Schemas["EditView"];
export type EditPreview = Schemas["EditPreview"];
export type EditStage = Schemas["StageView"];
export type EditOperation = Schemas["EditRequest"]["operation"];
export type Storage = Schemas["StorageSection"];
export type StoreVerdict = Schemas["StoreVerdict"];

export const datasetHref = (name: string) => `/datasets/?name=${encodeURIComponent(name)}`;

/** A dataset in the list, with the JSONLs that were built from it. */
export interface DatasetEntry {
  dataset: Dataset;
  jsonls: Dataset[];
}

/** One entry for a folder and its JSONLs, which are the same images and captions. */
export function datasetEntries(all: readonly Dataset[]): DatasetEntry[] {
  const folders = new Set(all.filter((each) => each.kind === "folder").map((each) => each.path));
  const isBuilt = (each: Dataset) =>
    each.kind === "jsonl" && each.source !== null && folders.has(each.source);
  return all
    .filter((each) => !isBuilt(each))
    .map((dataset) => ({
      dataset,
      jsonls: all.filter(
        (each) => isBuilt(each) && dataset.kind === "folder" && each.source === dataset.path,
      ),
    }));
}

const at = (dataset: string) => ({ path: { dataset } });

/** Images per request. */
export const PAGE = 100;
const MAX_TAGS = 150;
const MAX_EXAMPLES = 20;

export const datasets = queryOptions({
  queryKey: ["datasets"],
  queryFn: () => unwrap(api.GET("/api/datasets")),
  refetchInterval: 10_000,
});

/** How a JSONL compares with the folder that it was built from. */
export const freshness = (name: string) =>
  queryOptions({
    queryKey: ["freshness", name],
    queryFn: () => unwrap(api.GET("/api/datasets/{dataset}/freshness", { params: at(name) })),
    refetchInterval: 15_000,
  });

export const trash = queryOptions({ queryKey: ["trash"], queryFn: () => unwrap(api.GET("/api/trash")) });

export const summary = (name: string) =>
  queryOptions({
    queryKey: ["dataset", name, "summary"],
    queryFn: () => unwrap(api.GET("/api/datasets/{dataset}/summary", { params: at(name) })),
    refetchInterval: (query) => (query.state.data?.scan.is_running ? 1000 : 15_000),
  });

export const imagePage = (name: string, filter: ImageFilter, page: number) =>
  queryOptions({
    queryKey: ["dataset", name, "images", filter, page],
    queryFn: () =>
      unwrap(
        api.GET("/api/datasets/{dataset}/images", {
          params: { ...at(name), query: { ...filter, skip: page * PAGE, limit: PAGE } },
        }),
      ),
    staleTime: 10_000,
    refetchInterval: (query) => (query.state.data?.scan.is_running ? 1500 : 15_000),
    placeholderData: keepPreviousData,
  });

export const tags = (name: string, filter: ImageFilter) =>
  queryOptions({
    queryKey: ["dataset", name, "tags", filter],
    queryFn: () =>
      unwrap(
        api.GET("/api/datasets/{dataset}/tags", {
          params: { ...at(name), query: { ...filter, limit: MAX_TAGS } },
        }),
      ),
    placeholderData: keepPreviousData,
    staleTime: 10_000,
  });

export const edits = (name: string) =>
  queryOptions({
    queryKey: ["dataset", name, "edits"],
    queryFn: () => unwrap(api.GET("/api/datasets/{dataset}/edits", { params: at(name) })),
  });

/** The progress of the edit in progress, started by any client; null: none. */
export const editStage = (name: string) =>
  queryOptions({
    queryKey: ["edit-stage", name],
    queryFn: async () =>
      (await unwrap(api.GET("/api/datasets/{dataset}/edits/progress", { params: at(name) }))).edit,
    refetchInterval: 500,
  });

/** In characters; a browser keeps 64 KiB alive, for all requests together. */
const MAX_KEPT_ALIVE = 16_000;

export function saveCaption(dataset: string, item: string, caption: string, version: string) {
  return unwrap(
    api.PUT("/api/datasets/{dataset}/captions/{item}", {
      params: { path: { dataset, item }, header: { "if-match": `"${version}"` } },
      body: { caption },
      // The request continues if the tab is closed.
      keepalive: caption.length < MAX_KEPT_ALIVE,
    }),
  );
}

/** Put a saved caption into all loaded pages; everything else of the dataset is read again. */
export function keepCaption(client: QueryClient, name: string, saved: Caption): void {
  const { item, caption, version, is_tags } = saved;
  client.setQueriesData<ImagePage>({ queryKey: ["dataset", name, "images"] }, (page) =>
    page?.images.some((image) => image.item === item)
      ? {
          ...page,
          images: page.images.map((image) =>
            image.item === item ? { ...image, caption, version, is_tags } : image,
          ),
        }
      : page,
  );
  changed(client, name);
}

/** Read everything about a dataset again, including comparisons with it. */
export function changed(client: QueryClient, name: string): void {
  void client.invalidateQueries({ queryKey: ["dataset", name] });
  void client.invalidateQueries({ queryKey: ["freshness"] });
}

export const datasetApi = {
  create: (body: Schemas["NewDataset"]) => unwrap(api.POST("/api/datasets", { body })),
  importFrom: (body: Schemas["ImportRequest"]) => unwrap(api.POST("/api/datasets/import", { body })),
  update: (name: string) =>
    unwrap(api.POST("/api/datasets/{dataset}/update", { params: at(name), body: {} })),
  remove: (name: string) => unwrap(api.DELETE("/api/datasets/{dataset}", { params: at(name) })),
  restore: (id: string) =>
    unwrap(api.POST("/api/trash/{trash_id}/restore", { params: { path: { trash_id: id } } })),
  preview: (name: string, operation: EditOperation, filter: ImageFilter) =>
    unwrap(
      api.POST("/api/datasets/{dataset}/edits/preview", {
        params: at(name),
        body: { operation, filter, examples: MAX_EXAMPLES },
      }),
    ),
  edit: (name: string, operation: EditOperation, filter: ImageFilter, version: string) =>
    unwrap(
      api.POST("/api/datasets/{dataset}/edits", {
        params: at(name),
        body: { operation, filter, version },
      }),
    ),
  cancelEdit: (name: string) =>
    unwrap(api.POST("/api/datasets/{dataset}/edits/cancel", { params: at(name) })),
  undo: (name: string, id: string) =>
    unwrap(
      api.POST("/api/datasets/{dataset}/edits/{edit_id}/undo", {
        params: { path: { dataset: name, edit_id: id } },
        body: { is_partial: true },
      }),
    ),
};
