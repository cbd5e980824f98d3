import createClient from "openapi-fetch";
import { BASE } from "@/lib/base-path";
import type { components, paths } from "./schema";

export type Schemas = components["schemas"];
export type RunView = Schemas["RunView"];
export type RunState = RunView["state"];
export type Sample = Schemas["Sample"];
export type Checkpoint = Schemas["Checkpoint"];
export type Metrics = Schemas["Metrics"];
export type System = Schemas["System"];
export type FieldProblem = Schemas["FieldProblem"];
export type Preset = Schemas["PresetView"];

/** A failed request: what is wrong, where, and what to do. */
export class Problem extends Error {
  constructor(
    readonly title: string,
    readonly detail: string,
    readonly hint: string,
    readonly status: number,
    readonly fieldProblems: FieldProblem[] = [],
    /** The kind of problem, such as `name-taken`. */
    readonly code = "",
  ) {
    super(detail ? `${title} ${detail}` : title);
    this.name = "Problem";
  }
}

export const SIGNED_OUT = "flowloom:signed-out";

/** Encodes path parameters; slashes stay, because names of images are paths. */
function withPathParams(pathname: string, params: Record<string, unknown>): string {
  return pathname.replace(/\{(\w+)\}/g, (_, name: string) =>
    String(params[name]).split("/").map(encodeURIComponent).join("/"),
  );
}

/** The studio's API, typed by its OpenAPI document. */
export const api = createClient<paths>({ baseUrl: BASE, pathSerializer: withPathParams });

type ApiResponse<T> = { data?: T; error?: unknown; response: Response };

/** The data of a response; throws a `Problem` if the request failed. */
export async function unwrap<T>(request: Promise<ApiResponse<T>>): Promise<T> {
  let result: ApiResponse<T>;
  try {
    result = await request;
  } catch {
    throw new Problem(
      "The studio is not responding.",
      "",
      "Check that it is running. This page reconnects automatically.",
      0,
    );
  }
  if (result.response.ok) return result.data as T;
  throw problemOf(result.error, result.response.status);
}

/** Start a task, which becomes a run. */
export const startTask = (task: string, config: Record<string, unknown>) =>
  unwrap(api.POST("/api/tasks/{task}/start", { params: { path: { task } }, body: { config } }));

export function problemOf(content: unknown, status: number): Problem {
  if (status === 401 && typeof window !== "undefined") window.dispatchEvent(new Event(SIGNED_OUT));
  const view = (content ?? {}) as Partial<Schemas["ProblemView"]>;
  return new Problem(
    view.title ?? `The request failed with status ${status}.`,
    view.detail ?? "",
    view.hint ?? "Try again. If it fails again, check the studio's log.",
    status,
    view.errors ?? [],
    view.code ?? "",
  );
}

/** True if a retry may help: the studio did not say what is wrong. */
export function isPassing(error: unknown): boolean {
  return !(error instanceof Problem) || error.status === 0 || error.status >= 500;
}
