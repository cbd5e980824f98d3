import { expect, test } from "vitest";
import { fitName, nameProblem } from "@/lib/run-name";

test.each(["", "  ", "fox", " fox-lora ", "2.fox_a-b", "x".repeat(100)])("%j is a valid run name", (name) =>
  expect(nameProblem(name)).toBeNull(),
);

test.each(["cats v1/é", "-fox", ".fox", "x".repeat(101), "a b", "füchse"])(
  "%j is not a valid run name",
  (name) => expect(nameProblem(name)).toMatch(/^Run name: letters, digits, \. _ - only/),
);

test("a valid name is suggested", () => {
  expect(["cats v1/é", "-fox", "füchse", "x".repeat(120), "***"].map(fitName)).toEqual([
    "cats-v1-e",
    "fox",
    "fuchse",
    "x".repeat(100),
    "",
  ]);
  for (const name of ["cats v1/é", "-fox", "füchse", "a ".repeat(80)]) {
    expect(nameProblem(fitName(name))).toBeNull();
  }
});
