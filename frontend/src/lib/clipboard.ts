/** Puts `text` where it can be pasted from. Browsers keep their clipboard from a studio in the network by http. */
export async function copyText(text: string): Promise<void> {
  // Typed as always there; it is absent where the address is no secure one.
  const clipboard = navigator.clipboard as Clipboard | undefined;
  if (clipboard) return clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.style.cssText = "position: fixed; opacity: 0";
  // Within a dialog, nothing outside of it can be selected.
  (document.activeElement?.closest("dialog") ?? document.body).append(area);
  const before = document.activeElement as HTMLElement | null;
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  before?.focus();
  if (!isDone) throw new Error("The browser blocked copying. Select the text and press Ctrl+C.");
}
