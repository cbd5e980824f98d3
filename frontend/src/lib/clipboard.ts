/** Copy `text`. Browsers offer no clipboard API on plain HTTP from another machine. */
export async function copyText(text: string): Promise<void> {
  // Typed as always present; absent in an insecure context.
  const clipboard = navigator.clipboard as Clipboard | undefined;
  if (clipboard) return clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.style.cssText = "position: fixed; opacity: 0";
  // Inside a modal dialog, only its own content can be selected.
  (document.activeElement?.closest("dialog") ?? document.body).append(area);
  const before = document.activeElement as HTMLElement | null;
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  before?.focus();
  if (!isDone) throw new Error("The browser blocked copying. Select the text and press Ctrl+C.");
}
