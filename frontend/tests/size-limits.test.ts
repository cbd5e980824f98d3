import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";
import { expect, test } from "vitest";

const SRC = new URL("../src", import.meta.url).pathname;
const GENERATED = "lib/api/schema.ts";
const MAX_LINES = 100;
const MAX_LINES_PAGE = 150;
const MAX_LINES_FILE = 400;

const files = readdirSync(SRC, { recursive: true, encoding: "utf8" }).filter(
  (path) => /\.tsx?$/.test(path) && path !== GENERATED,
);

/** Functions and components of a file that have more lines than allowed. */
function tooLong(path: string, text: string, limit: number): string[] {
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const lineOf = (position: number) => source.getLineAndCharacterOfPosition(position).line + 1;
  const long: string[] = [];
  const visit = (node: ts.Node) => {
    if (ts.isFunctionLike(node)) {
      const [first, last] = [lineOf(node.getStart()), lineOf(node.end)];
      if (last - first + 1 > limit) long.push(`${path}:${first} has ${last - first + 1} lines`);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return long;
}

test("a component has at most 100 lines, a page 150, a file 400", () => {
  expect(files.length).toBeGreaterThan(100);
  const found = files.flatMap((path) => {
    const text = readFileSync(join(SRC, path), "utf8");
    const lines = text.split("\n").length - 1;
    const limit = path.endsWith("-page.tsx") ? MAX_LINES_PAGE : MAX_LINES;
    return [...(lines > MAX_LINES_FILE ? [`${path} has ${lines} lines`] : []), ...tooLong(path, text, limit)];
  });
  expect(found).toEqual([]);
});

test("long functions of every form are found", () => {
  const body = "  work();\n".repeat(100);
  for (const text of [
    `function A() {\n${body}}`,
    `const A = () => {\n${body}};`,
    `class A {\n  b() {\n${body}  }\n}`,
  ]) {
    expect(tooLong("a.tsx", text, MAX_LINES)).toHaveLength(1);
    expect(tooLong("a.tsx", text, 102)).toHaveLength(0);
  }
});
