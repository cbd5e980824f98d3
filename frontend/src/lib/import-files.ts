/** Recognize and read configuration files that are imported into a form. */

import { api, type FieldProblem, type Schemas, unwrap } from "@/lib/api/client";
import { checkConfig } from "@/lib/api/queries";
import { withoutSecrets } from "@/lib/draft";
import type { Field } from "./form-fields";
import { isTree, type Tree } from "./json";

export interface Report {
  /** The file names. */
  file: string;
  /** A phrase such as "a kohya_ss configuration". */
  kind: string;
  /** Null if the file could not be read. */
  config: Tree | null;
  /** True if it replaces only its own sections of the form. */
  isPart: boolean;
  numMatched: number;
  /** Keys that are kept without a field in the form. */
  others: string[];
  /** Keys that could not be imported, with their values. */
  leftOver: Tree;
  /** The reasons, by key. */
  reasons: Record<string, string>;
  /** Keys that became raw arguments or other keys. */
  translated: Record<string, string>;
  /** Keys without effect in the file itself. */
  unused: string[];
  /** Implied values that differ from those of a new form. */
  defaults: Tree;
  secrets: string[];
  problems: FieldProblem[];
  /** A file that this one refers to and that is missing. */
  absent: string | null;
  error: string | null;
}

const NOTHING: Report = {
  file: "",
  kind: "",
  config: null,
  isPart: false,
  numMatched: 0,
  others: [],
  leftOver: {},
  reasons: {},
  translated: {},
  unused: [],
  defaults: {},
  secrets: [],
  problems: [],
  absent: null,
  error: null,
};

/** The dotted paths of all values in a file. */
export function leaves(config: Tree): string[] {
  return Object.entries(config).flatMap(([name, value]) =>
    isTree(value) ? Object.keys(value).map((key) => `${name}.${key}`) : [name],
  );
}

export function fieldPaths(sections: readonly Field[]): Set<string> {
  const paths = new Set<string>();
  const visit = (field: Field) => {
    paths.add(field.path.join("."));
    field.fields.forEach(visit);
    if (field.kind === "variants") paths.add([...field.path, "kind"].join("."));
    for (const fields of Object.values(field.variants)) fields.forEach(visit);
  };
  sections.forEach(visit);
  return paths;
}

export interface SourceFile {
  name: string;
  text: string;
}

/** The body of POST /api/kohya/import for the dropped files; null if they are our own JSON. */
export function kohyaFiles(files: readonly SourceFile[]): Partial<Schemas["KohyaImportRequest"]> | null {
  const body: Partial<Schemas["KohyaImportRequest"]> = {};
  for (const { name, text } of files) {
    const kind = kindOf(name, text);
    if (kind === null) return null;
    body[kind] = text;
  }
  return body;
}

function kindOf(name: string, text: string): keyof Schemas["KohyaImportRequest"] | null {
  if (/\.txt$/i.test(name)) return "prompts";
  if (!/\.toml$/i.test(name)) {
    if (/^\s*\[/.test(text)) return "prompts";
    return isFlat(text) ? "bmaltais" : null;
  }
  if (/^\s*\[\[\s*datasets\s*\]\]/m.test(text)) return "dataset_toml";
  return /^\s*\[\[\s*prompt\.subset\s*\]\]/m.test(text) ? "prompts" : "toml";
}

/** True for kohya_ss, whose keys are flat; ours are in sections. */
function isFlat(text: string): boolean {
  try {
    const content: unknown = JSON.parse(text);
    return isTree(content) && !Object.values(content).some(isTree);
  } catch {
    return false;
  }
}

async function readOurs({ name, text }: SourceFile, trainer: string, sections: Field[]): Promise<Report> {
  const content: unknown = JSON.parse(text);
  if (!isTree(content)) throw new Error("The file is not a JSON object.");
  // Our run.json has its configuration under `config`.
  const whole = isTree(content.config) ? content.config : content;
  const { config, removed } = withoutSecrets(whole);
  const paths = leaves(config);
  const fields = fieldPaths(sections);
  const others = paths.filter((path) => !fields.has(path));
  const { problems } = await checkConfig({ trainer }, config);
  const kind = isTree(content.config) ? "a Flowloom run" : "a configuration";
  return {
    ...NOTHING,
    file: name,
    kind,
    config,
    numMatched: paths.length - others.length,
    others,
    secrets: removed,
    problems,
  };
}

async function readKohya(
  files: readonly SourceFile[],
  body: Partial<Schemas["KohyaImportRequest"]>,
): Promise<Report> {
  const result = await unwrap(api.POST("/api/kohya/import", { body }));
  const isPart = !body.bmaltais && !body.toml && !body.prompts;
  const { datasets } = result.config as Tree;
  const mine = withoutSecrets((isPart ? { datasets: datasets ?? [] } : result.config) as Tree);
  const rest = withoutSecrets(result.left_over as Tree);
  const named = /^\s*dataset_config\s*=\s*["'](.+?)["']/m.exec(body.toml ?? "")?.[1];
  return {
    ...NOTHING,
    file: files.map((file) => file.name).join(" and "),
    kind: body.bmaltais
      ? "a kohya_ss configuration"
      : isPart
        ? "an sd-scripts dataset configuration"
        : body.dataset_toml
          ? "an sd-scripts configuration with datasets"
          : "an sd-scripts configuration",
    config: mine.config,
    isPart,
    numMatched: isPart && Array.isArray(datasets) ? datasets.length : result.understood.length,
    leftOver: rest.config,
    reasons: result.reasons,
    translated: { ...result.translated, ...result.raw },
    unused: Object.keys(result.unused),
    defaults: isPart ? {} : (result.defaults as Tree),
    secrets: [...mine.removed, ...rest.removed, ...Object.keys(result.dropped)],
    problems: isPart ? [] : result.problems,
    absent: named && !body.dataset_toml ? named : null,
  };
}

/** Read the files into a report with a configuration for the form. Nothing is stored. */
export async function importFiles(
  files: readonly SourceFile[],
  trainer: string,
  sections: Field[],
): Promise<Report> {
  const file = files.map((each) => each.name).join(" and ");
  try {
    const foreign = trainer === "kohya" ? kohyaFiles(files) : null;
    if (foreign) return await readKohya(files, foreign);
    const [first] = files;
    if (!first) throw new Error("No file was given.");
    return await readOurs(first, trainer, sections);
  } catch (problem) {
    return { ...NOTHING, file, error: problem instanceof Error ? problem.message : String(problem) };
  }
}
