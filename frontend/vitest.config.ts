import { defineConfig } from "vitest/config";

export default defineConfig({
  resolve: { alias: { "@": new URL("./src", import.meta.url).pathname } },
  test: { environment: "node", include: ["tests/**/*.test.ts", "tests/**/*.test.tsx"], pool: "threads" },
});
