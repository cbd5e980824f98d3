import { describe, expect, test } from "vitest";
import { withoutSecrets } from "@/lib/draft";
import { kohyaFiles } from "@/lib/import-files";

describe("imported files", () => {
  const toml = 'learning_rate = 1e-4\ndataset_config = "/home/me/dataset.toml"\n';
  const sets = "[general]\nshuffle_caption = true\n\n[[datasets]]\nresolution = 512\n";

  test("the two TOMLs are distinguished by their content, in any order", () => {
    const files = [
      { name: "a.toml", text: sets },
      { name: "b.TOML", text: toml },
    ];
    expect(kohyaFiles(files)).toEqual({ toml, dataset_toml: sets });
    expect(kohyaFiles(files.toReversed())).toEqual({ toml, dataset_toml: sets });
  });

  test("a prompt file has lines, TOML or JSON", () => {
    for (const file of [
      { name: "p.txt", text: "a fox --w 64" },
      { name: "p.toml", text: "[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = 'a fox'\n" },
      { name: "p.json", text: '[{"prompt": "a fox"}]' },
    ])
      expect(kohyaFiles([{ name: "b.toml", text: toml }, file])).toEqual({ toml, prompts: file.text });
  });

  test("kohya_ss' JSON is flat; ours has sections", () => {
    expect(kohyaFiles([{ name: "x.json", text: '{"learning_rate": 0.1}' }])).toEqual({
      bmaltais: '{"learning_rate": 0.1}',
    });
    expect(kohyaFiles([{ name: "x.json", text: '{"training": {"seed": 1}}' }])).toBeNull();
    expect(kohyaFiles([{ name: "run.json", text: '{"trainer": "kohya", "config": {}}' }])).toBeNull();
  });

  test("tokens are removed; keep_tokens is not a token", () => {
    const { config, removed } = withoutSecrets({
      huggingface_token: "t",
      keep_tokens: 2,
      a: { hf_token: "u" },
    });
    expect(config).toEqual({ keep_tokens: 2, a: {} });
    expect(removed).toEqual(["huggingface_token", "a.hf_token"]);
  });
});
