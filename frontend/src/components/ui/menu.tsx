"use client";
import { type ReactNode, useEffect, useRef, useState } from "react";
import { Button } from "./button";
import { cx } from "./class-names";
import { DownIcon } from "./icons";

export interface MenuItem {
  label: ReactNode;
  onChoose: () => void;
  isDangerous?: boolean;
  isDisabled?: boolean;
  note?: string;
}

/** A menu button. Escape, a click elsewhere or a choice closes the menu; arrow keys move. */
export function Menu({
  label,
  items,
  size = "normal",
}: {
  label: ReactNode;
  items: MenuItem[];
  size?: "small" | "normal";
}) {
  const [isOpen, setOpen] = useState(false);
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!isOpen) return;
    const onDown = (event: PointerEvent) => !box.current?.contains(event.target as Node) && setOpen(false);
    document.addEventListener("pointerdown", onDown);
    box.current?.querySelector<HTMLElement>('[role="menuitem"]:not(:disabled)')?.focus();
    return () => document.removeEventListener("pointerdown", onDown);
  }, [isOpen]);
  // Focus the button before the item unmounts, so that a dialog opened next returns the focus to it.
  const close = () => {
    setOpen(false);
    box.current?.querySelector<HTMLElement>("button")?.focus();
  };
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: the keys belong to the menu inside
    <div
      ref={box}
      className="relative"
      onKeyDown={(event) => {
        if (event.key === "Escape") close();
        if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
        const entries = [
          ...(box.current?.querySelectorAll<HTMLElement>('[role="menuitem"]:not(:disabled)') ?? []),
        ];
        const index = entries.indexOf(document.activeElement as HTMLElement);
        event.preventDefault();
        entries[(index + (event.key === "ArrowDown" ? 1 : -1) + entries.length) % entries.length]?.focus();
      }}
    >
      <Button size={size} aria-haspopup="menu" aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
        {label}
        <DownIcon className="size-3" />
      </Button>
      {isOpen && (
        <div
          role="menu"
          className="absolute right-0 z-30 mt-1 min-w-52 rounded-lg border bg-card p-1 shadow-float"
        >
          {items.map((item, index) => (
            <button
              key={index}
              type="button"
              role="menuitem"
              disabled={item.isDisabled}
              onClick={() => {
                close();
                item.onChoose();
              }}
              className={cx(
                "block w-full rounded px-2.5 py-1.5 text-left text-sm hover:bg-muted disabled:opacity-50",
                item.isDangerous && "text-destructive",
              )}
            >
              {item.label}
              {item.note && <span className="block text-xs text-muted-foreground">{item.note}</span>}
            </button>
          ))}
        </div>
      )}
    </div>
  );
}
