import { expect, test } from "vitest";
import { remedies } from "@/lib/remedies";

test("advice is parsed into changes", () => {
  expect(
    remedies([
      'set lora.base_model_quant_level to "8bit": then 14.1 GB in all',
      "set training.train_minibatch to 1: then 12 GB in all",
      'set optimizer to {"kind": "adamw8bit"}: then 9 GB in all',
      "set checkpoint.keep_every to null: only the last checkpoints stay",
      "set checkpoint.keep_last to 1",
      "even so it needs a device with 20 GB free; this one has 16 GB",
    ]),
  ).toEqual([
    { path: ["lora", "base_model_quant_level"], value: "8bit" },
    { path: ["training", "train_minibatch"], value: 1 },
    { path: ["optimizer"], value: { kind: "adamw8bit" } },
    { path: ["checkpoint", "keep_every"], value: null },
    { path: ["checkpoint", "keep_last"], value: 1 },
  ]);
});
