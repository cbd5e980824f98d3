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

/** What the studio answers when it cannot do what was asked: what, where, and what to do. */
export class Problem extends Error {
  constructor(
    readonly title: string,
    readonly detail: string,
    readonly hint: string,
    readonly status: number,
    readonly places: FieldProblem[] = [],
    /** Which kind of problem it is, as the studio names it. */
    readonly code = "",
  ) {
    super(detail ? `${title} ${detail}` : title);
    this.name = "Problem";
  }
}

export const SIGNED_OUT = "flowloom:signed-out";

export const api = createClient<paths>({ baseUrl: BASE });

type Answer<T> = { data?: T; error?: unknown; response: Response };

/** The data of an answer; a `Problem` where there is none. */
export async function got<T>(asked: Promise<Answer<T>>): Promise<T> {
  let answer: Answer<T>;
  try {
    answer = await asked;
  } catch {
    throw new Problem(
      "The studio is not responding.",
      "",
      "Check that it is running. This page reconnects automatically.",
      0,
    );
  }
  if (answer.response.ok) return answer.data as T;
  throw problemOf(answer.error, answer.response.status);
}

/** JSON from a path that the generated client does not know by itself, such as a trainer's. */
export async function fetchJson<T>(path: string, body?: unknown, method?: string): Promise<T> {
  const init: RequestInit =
    body === undefined
      ? { method: method ?? "GET" }
      : {
          method: method ?? "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body),
        };
  return asked<T>(path, init);
}

/** JSON of a request that is more than a body. */
export function asked<T>(path: string, init: RequestInit): Promise<T> {
  return got<T>(
    fetch(BASE + path, init).then(async (response) => {
      const text = await response.text();
      const content: unknown = text ? parsed(text) : undefined;
      return response.ok ? { data: content as T, response } : { error: content, response };
    }),
  );
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export function problemOf(content: unknown, status: number): Problem {
  if (status === 401 && typeof window !== "undefined") window.dispatchEvent(new Event(SIGNED_OUT));
  const told = (content ?? {}) as Partial<Schemas["ProblemView"]>;
  return new Problem(
    told.title ?? `The request failed with status ${status}.`,
    told.detail ?? "",
    told.hint ?? "Try again. If it fails again, check the studio's log.",
    status,
    told.errors ?? [],
    told.code ?? "",
  );
}

/** Whether trying again by itself could help: not when the studio said what is wrong. */
export function isPassing(error: unknown): boolean {
  return !(error instanceof Problem) || error.status === 0 || error.status >= 500;
}
