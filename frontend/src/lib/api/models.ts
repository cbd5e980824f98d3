import { queryOptions } from "@tanstack/react-query";
import { fetchJson, type RunView } from "./client";

export interface Adapter {
  kind: string;
  naming: string;
  rank: number | null;
  max_rank: number | null;
  alpha: number | null;
  base: string | null;
  base_evidence: string | null;
  num_layers: number;
  has_text_encoder: boolean;
}

export interface Model {
  path: string;
  root: string;
  name: string;
  size: number;
  time: number;
  kind: string;
  architecture: string | null;
  words: string;
  family: string | null;
  variant: string | null;
  version: string | null;
  precision: string | null;
  num_params: number | null;
  parts: string[];
  adapter: Adapter | null;
  title: string | null;
  problem: string | null;
  /** A network as it is before its first training: a LoRA on it learns nothing. */
  is_untrained?: boolean;
  sha256: string | null;
}

export interface Library {
  roots: string[];
  size: number;
  families: { name: string; size: number; paths: string[] }[];
  models: Model[];
}

export interface Offer {
  id: string;
  title: string;
  note: string;
  architecture: string;
  license: string;
  size: number;
  is_here: boolean;
  download: { config: Record<string, unknown> };
  sets: Record<string, string>;
}

export const library = queryOptions({
  queryKey: ["models"],
  queryFn: () => fetchJson<Library>("/api/models"),
  staleTime: 10_000,
});

export const offers = queryOptions({
  queryKey: ["models", "offers"],
  queryFn: () => fetchJson<Offer[]>("/api/models/offers"),
  staleTime: 10_000,
});

export interface Lacking {
  needs: { path: string; why: string; here: string[]; offer: Offer }[];
  download: { config: Record<string, unknown> } | null;
}

export const lacking = (model: unknown) =>
  queryOptions({
    queryKey: ["models", "missing", model],
    queryFn: () => fetchJson<Lacking>("/api/models/missing", { config: { model } }),
    staleTime: 5000,
    retry: false,
  });

export const download = (body: { config: Record<string, unknown> }) =>
  fetchJson<RunView>("/api/tasks/download/start", body);
