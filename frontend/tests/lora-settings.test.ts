import { describe, expect, test } from "vitest";
import { isForceable } from "@/features/models/file-actions";
import { Problem } from "@/lib/api/client";
import { kohyaFiles } from "@/lib/import-files";
import { fromKohya, locationOf, trainingOf } from "@/lib/lora-settings";

describe("training settings in a LoRA's header", () => {
  const kohya = {
    ss_network_module: "networks.lora",
    ss_network_dim: "16",
    ss_network_args: '{"conv_dim": 4, "algo": "loha"}',
    ss_learning_rate: "0.0001",
    ss_optimizer: "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.01, betas=(0.9, 0.99))",
    ss_gradient_checkpointing: "True",
    ss_clip_skip: "None",
    ss_base_model_version: "sdxl_base_v1-0",
    ss_tag_frequency: "{}",
  };

  test("sd-scripts' keys become kohya_ss's; other keys are left out", () => {
    expect(fromKohya(kohya)).toEqual({
      network_module: "networks.lora",
      network_dim: "16",
      network_args: "conv_dim=4 algo=loha",
      learning_rate: "0.0001",
      optimizer: "AdamW8bit",
      optimizer_args: "weight_decay=0.01 betas=(0.9,0.99)",
      gradient_checkpointing: true,
      sdxl: true,
    });
  });

  test("the importer recognizes them as kohya_ss", () => {
    const like = trainingOf("x.safetensors", kohya);
    expect(like?.trainer).toBe("kohya");
    expect(Object.keys(kohyaFiles(like ? [like.file] : []) ?? {})).toEqual(["bmaltais"]);
  });

  test("our own configuration takes precedence over Kohya's keys", () => {
    const ours = { ...kohya, "flowloom.config": '{"training": {"seed": 1}}' };
    expect(trainingOf("x.safetensors", ours)).toMatchObject({
      trainer: "flow",
      file: { name: "x.safetensors", text: '{"training": {"seed": 1}}' },
    });
  });

  test("a header without settings gives null", () => {
    expect(trainingOf("x", { format: "pt", ss_tag_frequency: "{}" })).toBeNull();
  });

  test("a model's path relative to its root", () => {
    const model = { root: "models", path: "/home/me/models/loras/x.safetensors" };
    expect(locationOf(model, "/home/me/models")).toEqual({ root: "models", path: "loras/x.safetensors" });
  });
});

test("only a forceable deletion asks again", () => {
  const refused = (code: string) => new Problem("", "", "", 409, [], code);
  expect(isForceable(refused("needed-to-resume"))).toBe(true);
  expect(isForceable(refused("in-use"))).toBe(false);
  expect(isForceable(new Error("needed-to-resume"))).toBe(false);
});
