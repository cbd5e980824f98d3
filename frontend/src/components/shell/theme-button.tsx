"use client";
import { useEffect, useState } from "react";
import { IconButton } from "@/components/ui/button";
import { MoonIcon, SunIcon } from "@/components/ui/icons";

export function ThemeButton() {
  const [isDark, setDark] = useState<boolean | null>(null);
  useEffect(() => setDark(document.documentElement.dataset.theme === "dark"), []);
  const turn = () => {
    const next = !isDark;
    document.documentElement.dataset.theme = next ? "dark" : "light";
    localStorage.setItem("flowloom.theme", next ? "dark" : "light");
    window.dispatchEvent(new Event("flowloom:theme"));
    setDark(next);
  };
  return (
    <IconButton label={isDark ? "Light theme" : "Dark theme"} onClick={turn}>
      {isDark ? <SunIcon /> : <MoonIcon />}
    </IconButton>
  );
}
