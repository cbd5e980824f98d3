import { describe, expect, test } from "vitest";
import { isFound, leavesOf, numberFrom, sectionsOf, textOf } from "@/lib/form-fields";
import type { Tree } from "@/lib/json";

const schema: Tree = {
  $defs: {
    Training: {
      type: "object",
      description: "FLOW's training.",
      properties: {
        lr: {
          type: "number",
          exclusiveMinimum: 0,
          default: 1e-5,
          title: "Learning rate",
          description: "Learning rate.",
          simple: true,
        },
        seed: { type: "integer", default: 0 },
        every: { anyOf: [{ type: "integer", minimum: 1, unit: "steps" }, { type: "null" }], default: null },
        mode: { enum: ["a", "b"], default: "a" },
        blocks: {
          anyOf: [
            { enum: ["auto", "all"], type: "string" },
            { type: "integer", minimum: 0 },
          ],
          default: "auto",
        },
        prompts: { type: "array", items: { type: "string" }, default: [] },
        sizes: { type: "array", items: { type: "integer", minimum: 16, unit: "pixels" }, default: [512] },
        chroma_path: { type: "string", default: "" },
        compile: { type: "boolean", default: false },
      },
    },
    Lora: { type: "object", properties: { rank: { type: "integer", default: 16 } } },
    A: { type: "object", properties: { kind: { const: "a" }, eps: { type: "number", default: 1 } } },
    B: { type: "object", properties: { kind: { const: "b" } } },
  },
  properties: {
    training: { $ref: "#/$defs/Training" },
    lora: { anyOf: [{ $ref: "#/$defs/Lora" }, { type: "null" }], default: null },
    optimizer: {
      simple: true,
      discriminator: { propertyName: "kind", mapping: { a: "#/$defs/A", b: "#/$defs/B" } },
      oneOf: [{ $ref: "#/$defs/A" }, { $ref: "#/$defs/B" }],
    },
    loggers: {
      type: "array",
      items: {
        discriminator: { propertyName: "kind", mapping: { a: "#/$defs/A" } },
        oneOf: [{ $ref: "#/$defs/A" }],
      },
    },
  },
};

const sections = sectionsOf(schema);
const training = sections[0];
const field = (name: string) => training?.fields.find((each) => each.name === name);

describe("a schema becomes a form", () => {
  test("with a section for each object", () => {
    expect(sections.map((section) => [section.name, section.kind])).toEqual([
      ["training", "group"],
      ["lora", "group"],
      ["optimizer", "variants"],
      ["loggers", "items"],
    ]);
    expect(sections[1]?.isNullable).toBe(true);
  });

  test.each([
    ["lr", "number"],
    ["seed", "integer"],
    ["every", "integer"],
    ["mode", "choice"],
    ["blocks", "text"],
    ["prompts", "lines"],
    ["sizes", "numbers"],
    ["chroma_path", "path"],
    ["compile", "switch"],
  ])("%s is a %s", (name, kind) => expect(field(name)?.kind).toBe(kind));

  test("with ranges, nulls and suggestions from the schema", () => {
    expect(field("lr")?.range).toBe("> 0");
    expect(field("every")?.isNullable).toBe(true);
    expect(field("blocks")?.options).toEqual(["auto", "all"]);
    expect(field("sizes")?.range).toBe("≥ 16");
  });

  test("with the fields of each kind, without the kind itself", () => {
    expect(sections[2]?.variants.a?.map((each) => each.path.join("."))).toEqual(["optimizer.eps"]);
    expect(sections[3]?.variants.a?.map((each) => each.path.join("."))).toEqual(["eps"]);
  });

  test("with titles, units and detail levels from the schema", () => {
    expect(field("lr")).toMatchObject({ title: "Learning rate", unit: null, isSimple: true });
    expect(field("every")).toMatchObject({ title: "every", unit: "steps", isSimple: false });
    expect(field("sizes")?.unit).toBe("pixels");
  });

  test("and the fields of a simple field are simple", () => {
    expect(sections[2]?.variants.a?.map((each) => each.isSimple)).toEqual([true]);
    expect(sections[3]?.variants.a?.map((each) => each.isSimple)).toEqual([false]);
  });

  test("from flat schemas too, grouped", () => {
    const flat = sectionsOf({
      properties: {
        a: { type: "integer", group: "First" },
        b: { type: "string", group: "General" },
        c: { type: "integer", group: "First" },
      },
    });
    expect(flat.map((section) => [section.title, section.fields.map((each) => each.name)])).toEqual([
      ["First", ["a", "c"]],
      ["General", ["b"]],
    ]);
  });
});

test("search covers keys, titles and help", () => {
  const found = training ? leavesOf(training).filter((each) => isFound(each, ["learning", "rate"])) : [];
  expect(found.map((each) => each.name)).toEqual(["lr"]);
});

describe("numbers", () => {
  test.each([
    ["1e-4", 1e-4],
    ["0,5", 0.5],
    ["", null],
    ["fast", "fast"],
    [" 12 ", 12],
  ])("%j is read as %j", (text, value) => expect(numberFrom(text)).toBe(value));

  test("are formatted so that they parse to the same value", () => {
    for (const value of [0, 1e-5, 2.5e-7, 1.3e-3, 512, 123456, 1e9])
      expect(numberFrom(textOf(value))).toBe(value);
  });
});
