import type { NextConfig } from "next";
import { BASE } from "./src/lib/base-path";

// A static export, served by the studio itself without Node.
const config: NextConfig = {
  output: "export",
  basePath: BASE,
  trailingSlash: true,
  images: { unoptimized: true },
  reactStrictMode: true,
  poweredByHeader: false,
  devIndicators: false,
  typescript: { ignoreBuildErrors: false },
  experimental: { cpus: 1 },
};

export default config;
