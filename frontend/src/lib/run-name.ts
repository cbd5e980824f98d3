const FIT = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;

/** What is wrong with the name of a run, as the server says it; null where it can be used or is empty. */
export function nameProblem(text: string): string | null {
  const name = text.trim();
  if (name === "" || FIT.test(name)) return null;
  return "Run name: letters, digits, . _ - only (no spaces), a letter or digit first, 100 at most.";
}

/** A name like `text` that a run can have; empty where nothing of it can stay. */
export function fitName(text: string): string {
  const plain = text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "");
  return plain
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .replace(/^[^A-Za-z0-9]+/, "")
    .slice(0, 100)
    .replace(/[-._]+$/, "");
}
