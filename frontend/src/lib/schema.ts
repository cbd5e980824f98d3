/** A trainer's JSON schema as a form: sections of fields. Whatever trainer it is of. */
import { isTree, type Json, type Tree } from "./json";

export type FieldKind =
  | "number"
  | "integer"
  | "text"
  | "path"
  | "switch"
  | "choice"
  | "lines"
  | "numbers"
  | "items"
  | "group"
  | "variants"
  | "json";

export interface Field {
  path: string[];
  name: string;
  title: string;
  help: string;
  kind: FieldKind;
  unit: string | null;
  initial: Json | undefined;
  isNullable: boolean;
  isRequired: boolean;
  isSimple: boolean;
  options: Json[];
  range: string | null;
  /** Under which heading a flat schema's field stands. */
  group: string | null;
  /** Of a group; of each item of `items`. */
  fields: Field[];
  /** Of `variants`: the fields of each kind. */
  variants: Record<string, Field[]>;
}

const MOST_DEPTH = 6;
/** Limits beyond this are of number formats, not of the thing. */
const UNBOUND = 1e12;

interface Context {
  defs: Tree;
  simple: ReadonlySet<string>;
}

/** What a person looks at first; all else is behind "Advanced". A schema may say so itself. */
const FLOW: ReadonlySet<string> = new Set([
  "training.lr",
  "training.train_minibatch",
  "training.warmup_steps",
  "training.save_every",
  "training.master_seed",
  "inference.inference_every",
  "inference.prompts",
  "inference.steps",
  "inference.cfg",
  "inference.image_dim",
  "dataloader.batch_size",
  "dataloader.jsonl_metadata_path",
  "dataloader.image_folder_path",
  "dataloader.base_resolution",
  "dataloader.shuffle_tags",
  "dataloader.uncond_percentage",
  "model.chroma_path",
  "model.vae_path",
  "model.t5_path",
  "model.t5_config_path",
  "model.t5_tokenizer_path",
  "lora.rank",
  "lora.alpha",
  "lora.base_model_quant_level",
  "method.kind",
  "optimizer",
  "ema.decay",
  "cache.latents",
  "cache.text",
  "limits.max_steps",
  "limits.max_epochs",
  "limits.max_minutes",
  "checkpoint.keep_last",
  "checkpoint.keep_every",
  "validation.share",
  "memory.checkpointed_blocks",
]);

const KOHYA: ReadonlySet<string> = new Set([
  "family",
  "method",
  "model.pretrained_model_name_or_path",
  "model.vae",
  "model.ae",
  "model.clip_l",
  "model.t5xxl",
  "datasets",
  "network.network_dim",
  "network.network_alpha",
  "training.max_train_steps",
  "training.learning_rate",
  "training.optimizer_type",
  "training.lr_scheduler",
  "training.seed",
  "memory.fp8_base",
  "memory.blocks_to_swap",
  "saving.output_name",
  "saving.save_every_n_steps",
  "saving.save_last_n_steps",
  "sampling.prompts",
  "sampling.width",
  "sampling.height",
  "sampling.sample_every_n_steps",
]);

/** By trainer; one that is not here shows all that its own schema does not call advanced. */
export const SIMPLE: Record<string, ReadonlySet<string>> = { flow: FLOW, kohya: KOHYA };

export function sectionsOf(schema: Tree, simple: ReadonlySet<string> = FLOW): Field[] {
  const context = { defs: isTree(schema.$defs) ? schema.$defs : {}, simple };
  const fields = fieldsOf(schema, [], context, 0);
  const loose = fields.filter((field) => !isSection(field));
  const sections = fields.filter(isSection);
  if (loose.length === 0) return sections;
  return [...groupsOf(loose), ...sections];
}

const isSection = (field: Field) => ["group", "variants", "items"].includes(field.kind);

/** A flat schema's fields, gathered by what each says of its `group`. */
function groupsOf(fields: Field[]): Field[] {
  const groups = new Map<string, Field[]>();
  for (const field of fields) {
    const name = field.group ?? "General";
    groups.set(name, [...(groups.get(name) ?? []), field]);
  }
  return [...groups].map(([name, members]) => ({
    ...blank(name, []),
    kind: "group",
    title: name,
    fields: members,
  }));
}

function blank(name: string, path: string[]): Field {
  return {
    path,
    name,
    title: titleOf(name),
    help: "",
    kind: "json",
    unit: null,
    initial: undefined,
    isNullable: false,
    isRequired: false,
    isSimple: true,
    options: [],
    range: null,
    group: null,
    fields: [],
    variants: {},
  };
}

function fieldsOf(schema: Tree, path: string[], context: Context, depth: number): Field[] {
  const properties = isTree(schema.properties) ? schema.properties : {};
  const required = Array.isArray(schema.required) ? schema.required : [];
  return Object.entries(properties)
    .filter(([, part]) => isTree(part) && !(isTree(part) && part.const !== undefined))
    .map(([name, part]) => {
      const field = fieldOf(name, part as Tree, [...path, name], context, depth);
      return { ...field, isRequired: required.includes(name) };
    });
}

function resolved(schema: Tree, defs: Tree): Tree {
  const { $ref, ...rest } = schema;
  if (typeof $ref !== "string") return schema;
  const target = defs[$ref.split("/").pop() ?? ""];
  return isTree(target) ? { ...target, ...rest } : rest;
}

function fieldOf(name: string, given: Tree, path: string[], context: Context, depth: number): Field {
  const whole = resolved(given, context.defs);
  const { schema, isNullable } = withoutNull(whole, context.defs);
  const dotted = path.join(".");
  const field: Field = {
    ...blank(name, path),
    help: String(whole.description ?? schema.description ?? "").replaceAll("\n", " "),
    title:
      typeof whole.title === "string" && whole.title.includes(" ") === false ? titleOf(name) : titleOf(name),
    unit: unitOf(name, whole),
    initial: whole.default,
    isNullable,
    isSimple: whole.simple === true || context.simple.has(dotted) || context.simple.has(path[0] ?? ""),
    range: rangeOf(schema),
    group: typeof whole.group === "string" ? whole.group : null,
  };
  return shaped(field, schema, context, depth);
}

/** The part of a schema that is not null. */
function withoutNull(schema: Tree, defs: Tree): { schema: Tree; isNullable: boolean } {
  if (!Array.isArray(schema.anyOf)) return { schema, isNullable: false };
  const parts = schema.anyOf.filter(isTree).map((part) => resolved(part, defs));
  const rest = parts.filter((part) => part.type !== "null");
  const isNullable = rest.length < parts.length;
  const [only] = rest;
  if (rest.length === 1 && only) return { schema: only, isNullable };
  return { schema: { ...schema, anyOf: rest }, isNullable };
}

function shaped(field: Field, schema: Tree, context: Context, depth: number): Field {
  if (depth > MOST_DEPTH) return field;
  if (Array.isArray(schema.enum)) return { ...field, kind: "choice", options: schema.enum };
  if (isTree(schema.discriminator)) {
    return { ...field, kind: "variants", variants: variantsOf(schema, field.path, context, depth) };
  }
  if (Array.isArray(schema.anyOf)) {
    const parts = schema.anyOf.filter(isTree);
    const options = parts.flatMap((part) =>
      Array.isArray(part.enum) ? part.enum : part.const === undefined ? [] : [part.const],
    );
    return { ...field, kind: "text", options, range: parts.map(rangeOf).find(Boolean) ?? null };
  }
  if (isTree(schema.properties))
    return { ...field, kind: "group", fields: fieldsOf(schema, field.path, context, depth + 1) };
  if (schema.type === "array") return listed(field, schema, context, depth);
  if (schema.type === "boolean") return { ...field, kind: "switch" };
  if (schema.type === "integer" || schema.type === "number") return { ...field, kind: schema.type };
  if (schema.type === "string")
    return { ...field, kind: /(^|_)(path|dir|folder|file)$/.test(field.name) ? "path" : "text" };
  return field;
}

function listed(field: Field, schema: Tree, context: Context, depth: number): Field {
  const first = Array.isArray(schema.prefixItems) ? schema.prefixItems[0] : schema.items;
  const item = isTree(first) ? resolved(first, context.defs) : {};
  if (item.type === "string") return { ...field, kind: "lines" };
  if (item.type === "number" || item.type === "integer")
    return { ...field, kind: "numbers", range: rangeOf(item) };
  if (isTree(item.discriminator)) {
    return { ...field, kind: "items", variants: variantsOf(item, [], context, depth) };
  }
  if (isTree(item.properties))
    return { ...field, kind: "items", fields: fieldsOf(item, [], context, depth + 1) };
  return field;
}

function variantsOf(schema: Tree, path: string[], context: Context, depth: number): Record<string, Field[]> {
  const mapping =
    isTree(schema.discriminator) && isTree(schema.discriminator.mapping) ? schema.discriminator.mapping : {};
  return Object.fromEntries(
    Object.entries(mapping).map(([kind, ref]) => [
      kind,
      fieldsOf(resolved({ $ref: ref }, context.defs), path, context, depth + 1),
    ]),
  );
}

function rangeOf(schema: Tree): string | null {
  const parts: string[] = [];
  if (schema.minimum !== undefined) parts.push(`≥ ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) parts.push(`> ${schema.exclusiveMinimum}`);
  if (Number(schema.maximum) < UNBOUND) parts.push(`≤ ${schema.maximum}`);
  if (Number(schema.exclusiveMaximum) < UNBOUND) parts.push(`< ${schema.exclusiveMaximum}`);
  if (schema.multipleOf !== undefined) parts.push(`multiples of ${schema.multipleOf}`);
  return parts.length > 0 ? parts.join(", ") : null;
}

const UNITS: [RegExp, string][] = [
  [/_mib$/, "MiB"],
  [/_gib$/, "GiB"],
  [/_s$/, "s"],
  [/_minutes$|^max_minutes$/, "minutes"],
  [/_steps$|_every$|^every$/, "steps"],
  [/_percentage$|^share$/, "0 to 1"],
  [/resolution|image_dim$/, "pixels"],
  [/_megapixels$/, "megapixels"],
  [/_epochs$/, "epochs"],
  [/t5_max_length$|_tokens$/, "tokens"],
];

function unitOf(name: string, schema: Tree): string | null {
  if (typeof schema.unit === "string") return schema.unit;
  const isNumeric = JSON.stringify(schema).match(/"(number|integer)"/);
  return isNumeric ? (UNITS.find(([pattern]) => pattern.test(name))?.[1] ?? null) : null;
}

const WORDS: Record<string, string> = {
  lr: "Learning rate",
  ema: "EMA",
  lora: "LoRA",
  loras: "LoRAs",
  t5: "T5",
  t5xxl: "T5 XXL",
  clip: "CLIP",
  ae: "AE",
  fp8: "FP8",
  vae: "VAE",
  cfg: "CFG",
  jsonl: "JSONL",
  gib: "",
  mib: "",
  wandb: "W&B",
  id: "ID",
  url: "URL",
  dataloader: "Data loader",
  datasets: "Datasets",
  uncond: "Unconditional",
  wo: "without",
};

export function titleOf(name: string): string {
  const words = name.split("_").map((word) => WORDS[word] ?? word);
  const title = words.filter(Boolean).join(" ");
  return title.charAt(0).toUpperCase() + title.slice(1);
}

/** All leaves of a section, to search and to count. */
export function leavesOf(field: Field): Field[] {
  if (field.kind === "group") return field.fields.flatMap(leavesOf);
  return [field];
}

export function isFound(field: Field, words: readonly string[]): boolean {
  const text = `${field.path.join(".")} ${field.title} ${field.help}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

/** What a text says as a number; as it is where it is none, so that the server can say what is wrong. */
export function numberFrom(text: string): Json {
  const trimmed = text.trim();
  if (trimmed === "") return null;
  const value = Number(trimmed.replace(",", "."));
  return Number.isFinite(value) ? value : trimmed;
}

export function textOf(value: Json | undefined): string {
  if (value === undefined || value === null) return "";
  if (typeof value === "number" && value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) {
    return value.toExponential().replace("e+", "e");
  }
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
