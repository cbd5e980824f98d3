const FIT = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;

/** Return the problem with a run name, or null if it is valid or empty. Same rule as on the server. */
export function nameProblem(text: string): string | null {
  const name = text.trim();
  if (name === "" || FIT.test(name)) return null;
  return "Run name: letters, digits, . _ - only (no spaces), a letter or digit first, 100 at most.";
}

/** Return a valid run name similar to `text`, possibly empty. */
export function fitName(text: string): string {
  const plain = text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "");
  return plain
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .replace(/^[^A-Za-z0-9]+/, "")
    .slice(0, 100)
    .replace(/[-._]+$/, "");
}
