"use client";
import { type ReactNode, useState } from "react";
import { cx } from "./class-names";

/** A box that accepts dropped files. A button in it must offer the same for the keyboard. */
export function DropZone({
  onDrop,
  className,
  children,
}: {
  onDrop: (transfer: DataTransfer) => void;
  className?: string;
  children: ReactNode;
}) {
  const [isOver, setOver] = useState(false);
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: a button in it does the same
    <div
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        onDrop(event.dataTransfer);
      }}
      className={cx(
        "rounded-lg border border-dashed px-4 py-2.5",
        isOver ? "border-primary bg-accent" : "border-input",
        className,
      )}
    >
      {children}
    </div>
  );
}
