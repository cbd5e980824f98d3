import { expect, test } from "vitest";
import { FLOW_NETWORK, networkPath, networkPaths, networkValues } from "@/features/training/network-keys";

const [chroma, general] = FLOW_NETWORK;
const candidates = {
  "model.chroma_path": ["/models/chroma.safetensors"],
  "model.path": ["/models/chroma.safetensors", "/models/flux1-dev.safetensors"],
};

test("networks of every family are offered, each once", () => {
  expect(networkPaths(FLOW_NETWORK, candidates)).toEqual([
    "/models/chroma.safetensors",
    "/models/flux1-dev.safetensors",
  ]);
});

test("FLUX.1 is set under the key for any family, Chroma under FLOW's", () => {
  const before = { model: { chroma_path: "/models/chroma.safetensors" } };
  expect(networkValues("/models/flux1-dev.safetensors", FLOW_NETWORK, candidates, before)).toEqual([
    [chroma, ""],
    [general, "/models/flux1-dev.safetensors"],
  ]);
  expect(networkValues("/models/chroma.safetensors", FLOW_NETWORK, candidates, {})).toEqual([
    [chroma, "/models/chroma.safetensors"],
    [general, ""],
  ]);
});

test("the key for any family replaces FLOW's", () => {
  expect(networkPath({ model: { chroma_path: "a", path: "b" } }, FLOW_NETWORK)).toBe("b");
  expect(networkPath({ model: { chroma_path: "a", path: "" } }, FLOW_NETWORK)).toBe("a");
  expect(networkPath({}, FLOW_NETWORK)).toBe("");
});

test("a file elsewhere stays under the key that names it", () => {
  const whole = { model: { chroma_path: "", path: "/elsewhere/flux" } };
  expect(networkValues("/elsewhere/flux", FLOW_NETWORK, candidates, whole)).toEqual([
    [chroma, ""],
    [general, "/elsewhere/flux"],
  ]);
});
