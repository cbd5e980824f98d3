/** The source of a new dataset. */
export type Source =
  | { kind: "none" }
  | { kind: "folder"; path: string }
  | { kind: "bucket"; url: string }
  | { kind: "web"; url: string }
  | { kind: "hub"; repo: string; revision: string; below: string };

/** A dataset page of the Hugging Face Hub, or hf://OWNER/NAME. */
const HUB =
  /^(?:https:\/\/huggingface\.co\/datasets\/|hf:\/\/(?:datasets\/)?)([\w-][\w.-]*\/[\w-][\w.-]*?)(?:\/tree\/([^/?#]+)(?:\/([^?#]*?))?)?\/?(?:[?#].*)?$/;

export function sourceOf(text: string): Source {
  const location = text.trim();
  if (location === "") return { kind: "none" };
  const [, repo, revision = "main", below = ""] = HUB.exec(location) ?? [];
  if (repo) {
    return {
      kind: "hub",
      repo,
      revision: decodeURIComponent(revision),
      below: decodeURIComponent(below),
    };
  }
  if (/^https?:\/\//.test(location)) return { kind: "web", url: location };
  return location.includes("://") ? { kind: "bucket", url: location } : { kind: "folder", path: location };
}
