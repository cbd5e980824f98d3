import { defineConfig } from "vitest/config";

// Far from London: what shows a day shows that of its reader.
process.env.TZ = "America/New_York";

export default defineConfig({
  resolve: { alias: { "@": new URL("./src", import.meta.url).pathname } },
  test: { environment: "node", include: ["tests/**/*.test.ts", "tests/**/*.test.tsx"], pool: "threads" },
});
