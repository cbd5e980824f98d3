import { defineConfig } from "vitest/config";

// A time zone far from UTC, to test that days are local.
process.env.TZ = "America/New_York";

export default defineConfig({
  resolve: { alias: { "@": new URL("./src", import.meta.url).pathname } },
  test: { environment: "node", include: ["tests/**/*.test.ts", "tests/**/*.test.tsx"], pool: "threads" },
});
