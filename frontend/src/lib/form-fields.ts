/** The JSON schema of a trainer or task as a form: sections of fields. */
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
  /** The heading above the field in a flat schema. */
  group: string;
  /** Fields of a group, or of each item of `items`. */
  fields: Field[];
  /** The fields of each kind of `variants`. */
  variants: Record<string, Field[]>;
}

const MOST_DEPTH = 6;
/** Larger limits belong to number formats, not to the field. */
const UNBOUND = 1e12;

interface Context {
  defs: Tree;
  /** True within a simple field, whose fields are simple too. */
  isSimple: boolean;
}

export function sectionsOf(schema: Tree): Field[] {
  const context = { defs: isTree(schema.$defs) ? schema.$defs : {}, isSimple: false };
  const fields = fieldsOf(schema, [], context, 0);
  const loose = fields.filter((field) => !isSection(field));
  const sections = fields.filter(isSection);
  if (loose.length === 0) return sections;
  return [...groupsOf(loose), ...sections];
}

const isSection = (field: Field) => ["group", "variants", "items"].includes(field.kind);

/** The fields of a flat schema by their `group`. */
function groupsOf(fields: Field[]): Field[] {
  const groups = new Map<string, Field[]>();
  for (const field of fields) {
    groups.set(field.group, [...(groups.get(field.group) ?? []), field]);
  }
  return [...groups].map(([name, members]) => ({
    ...blank(name, []),
    kind: "group",
    fields: members,
  }));
}

function blank(name: string, path: string[]): Field {
  return {
    path,
    name,
    title: name,
    help: "",
    kind: "json",
    unit: null,
    initial: undefined,
    isNullable: false,
    isRequired: false,
    isSimple: true,
    options: [],
    range: null,
    group: "",
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
  const field: Field = {
    ...blank(name, path),
    help: String(whole.description ?? schema.description ?? "").replaceAll("\n", " "),
    title: textOr(whole.title, name),
    unit: unitOf(whole),
    initial: whole.default,
    isNullable,
    isSimple: whole.simple === true || context.isSimple,
    range: rangeOf(schema),
    group: textOr(whole.group, ""),
  };
  return shaped(field, schema, { ...context, isSimple: field.isSimple }, depth);
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

/** The unit of a field, or of the numbers that it consists of. */
function unitOf(schema: Tree): string | null {
  if (typeof schema.unit === "string") return schema.unit;
  const parts = [schema.anyOf, schema.prefixItems, schema.items].flat().filter(isTree);
  for (const part of parts) {
    const unit = part.properties || part.$ref ? null : unitOf(part);
    if (unit) return unit;
  }
  return null;
}

const textOr = (value: Json | undefined, other: string) => (typeof value === "string" ? value : other);

/** All leaves of a section, to search and to count. */
export function leavesOf(field: Field): Field[] {
  if (field.kind === "group") return field.fields.flatMap(leavesOf);
  return [field];
}

export function isFound(field: Field, terms: readonly string[]): boolean {
  const text = `${field.path.join(".")} ${field.title} ${field.help}`.toLowerCase();
  return terms.every((term) => text.includes(term));
}

/** The number that a text stands for; another text is kept, so that the server can report it. */
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
