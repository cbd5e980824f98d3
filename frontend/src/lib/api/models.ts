import { queryOptions } from "@tanstack/react-query";
import { api, type Schemas, unwrap } from "./client";

export type Model = Schemas["ModelView"];
export type Library = Schemas["ModelLibrary"];
export type Offer = Schemas["OfferView"];

export const library = queryOptions({
  queryKey: ["models"],
  queryFn: () => unwrap(api.GET("/api/models")),
  staleTime: 10_000,
});

export const offers = queryOptions({
  queryKey: ["models", "offers"],
  queryFn: () => unwrap(api.GET("/api/models/offers")),
  staleTime: 10_000,
});

/** Files that a configuration's model needs and that are missing, with offers to download them. */
export const missingFiles = (model: unknown) =>
  queryOptions({
    queryKey: ["models", "missing", model],
    queryFn: () => unwrap(api.POST("/api/models/missing", { body: { config: { model } } })),
    staleTime: 5000,
    retry: false,
  });

/** Start a download that the studio offers. */
export const download = (body: Schemas["DownloadRequest"]) =>
  unwrap(api.POST("/api/tasks/{task}/start", { params: { path: { task: "download" } }, body }));
