import type { NextConfig } from "next";
import { BASE } from "./src/lib/base-path";

// A static export: the studio's own process serves it, there is no Node at run time.
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
