/** What somebody means who says where a data set lies. */
export type Source =
  | { kind: "none" }
  | { kind: "folder"; path: string }
  | { kind: "bucket"; url: string }
  | { kind: "web"; url: string }
  | { kind: "hub"; repo: string; revision: string; below: string };

/** A page of a data set of the hub, as one copies it from the browser, or hf://OWNER/NAME as its libraries have it. */
const HUB =
  /^(?:https:\/\/huggingface\.co\/datasets\/|hf:\/\/(?:datasets\/)?)([\w-][\w.-]*\/[\w-][\w.-]*?)(?:\/tree\/([^/?#]+)(?:\/([^?#]*?))?)?\/?(?:[?#].*)?$/;

export function sourceOf(text: string): Source {
  const place = text.trim();
  if (place === "") return { kind: "none" };
  const [, repo, revision = "main", below = ""] = HUB.exec(place) ?? [];
  if (repo) {
    return {
      kind: "hub",
      repo,
      revision: decodeURIComponent(revision),
      below: decodeURIComponent(below),
    };
  }
  if (/^https?:\/\//.test(place)) return { kind: "web", url: place };
  return place.includes("://") ? { kind: "bucket", url: place } : { kind: "folder", path: place };
}
