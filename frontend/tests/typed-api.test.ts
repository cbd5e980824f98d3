import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";
import { expect, test } from "vitest";

const SRC = new URL("../src", import.meta.url).pathname;
const GENERATED = "lib/api/schema.ts";
/** Uploads follow the tus protocol, whose responses are headers. */
const FETCHES = new Set(["lib/upload.ts"]);
/** Types in lib/api that no response has. */
const VIEW_MODELS = new Set(["DatasetEntry", "Span", "ConfigOwner", "ApiResponse"]);

const files = readdirSync(SRC, { recursive: true, encoding: "utf8" }).filter(
  (path) => /\.tsx?$/.test(path) && path !== GENERATED,
);
const generated = readFileSync(join(SRC, GENERATED), "utf8");
const schemas = new Set([...generated.matchAll(/^ {8}([A-Z]\w+): \{$/gm)].map(([, name]) => name));

/** Requests that bypass the typed client, and types that are written by hand for responses. */
function handWritten(path: string, text: string): string[] {
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const found: string[] = [];
  const visit = (node: ts.Node) => {
    const called = ts.isCallExpression(node) && ts.isIdentifier(node.expression) ? node.expression.text : "";
    if (called === "fetch" && !FETCHES.has(path)) {
      found.push(`${path}: fetch() instead of the typed client`);
    }
    if (called === "unwrap" && ts.isCallExpression(node) && node.typeArguments) {
      found.push(`${path}: unwrap<...>() with an explicit type`);
    }
    const isShape =
      ts.isInterfaceDeclaration(node) || (ts.isTypeAliasDeclaration(node) && holdsLiteral(node.type));
    if (isShape && !VIEW_MODELS.has(node.name.text)) {
      if (path.startsWith("lib/api/")) found.push(`${path}: ${node.name.text}`);
      else if (schemas.has(node.name.text)) found.push(`${path}: ${node.name.text} is a generated schema`);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

function holdsLiteral(node: ts.Node): boolean {
  return ts.isTypeLiteralNode(node) || (ts.forEachChild(node, holdsLiteral) ?? false);
}

test("types of responses are generated, and every request goes through the typed client", () => {
  expect(schemas.size).toBeGreaterThan(100);
  expect(files.flatMap((path) => handWritten(path, readFileSync(join(SRC, path), "utf8")))).toEqual([]);
});

test("hand-written response types of every form are found", () => {
  for (const [path, text] of [
    ["features/a.ts", `const a = fetch("/api/runs");`],
    ["features/a.ts", "const a = unwrap<number>(request);"],
    ["features/a.ts", "interface RunView { id: string }"],
    ["lib/api/a.ts", "export interface Thing { id: string }"],
    ["lib/api/a.ts", "export type Thing = { id: string }[];"],
  ] as const) {
    expect(handWritten(path, text)).toHaveLength(1);
  }
  expect(handWritten("lib/api/a.ts", `export type Run = Schemas["RunView"];`)).toEqual([]);
});
