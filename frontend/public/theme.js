// Runs before the first paint, so that no page flashes in the wrong theme.
try {
  const wish = localStorage.getItem("flowloom.theme");
  const isDark = wish ? wish === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
} catch {
  document.documentElement.dataset.theme = "light";
}
