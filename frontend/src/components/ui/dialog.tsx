"use client";
import { type ReactNode, useEffect, useId, useLayoutEffect, useRef } from "react";
import { Button, IconButton } from "./button";
import { cx } from "./class-names";
import { CloseIcon } from "./icons";

/** The native modal dialog: it traps the focus, closes on Escape and restores the focus. */
export function Dialog({
  title,
  isOpen,
  onClose,
  children,
  width = "max-w-lg",
}: {
  title: ReactNode;
  isOpen: boolean;
  onClose: () => void;
  children: ReactNode;
  width?: string;
}) {
  const element = useRef<HTMLDialogElement>(null);
  const titleId = useId();
  useEffect(() => {
    const dialog = element.current;
    if (!dialog) return;
    if (isOpen && !dialog.open) dialog.showModal();
    if (!isOpen && dialog.open) dialog.close();
  }, [isOpen]);
  useLayoutEffect(() => {
    const dialog = element.current;
    // A dialog that is unmounted while open must restore the focus, too.
    return () => dialog?.close();
  }, []);
  // Selecting text and releasing the pointer outside the dialog is not a click on the backdrop.
  const pressed = useRef<EventTarget | null>(null);
  return (
    // biome-ignore lint/a11y/useKeyWithClickEvents: Escape closes it already
    <dialog
      ref={element}
      aria-labelledby={titleId}
      onClose={onClose}
      onPointerDown={(event) => {
        pressed.current = event.target;
      }}
      onClick={(event) =>
        event.target === element.current && pressed.current === element.current && onClose()
      }
      className={cx("w-[calc(100vw-2rem)] rounded-xl border bg-card p-0 shadow-float", width)}
    >
      {isOpen && (
        <div className="flex max-h-[85dvh] flex-col">
          <header className="flex items-center justify-between gap-3 border-b py-2 pr-2 pl-4">
            <h2 id={titleId} className="min-w-0 truncate text-sm font-semibold">
              {title}
            </h2>
            <IconButton label="Close" onClick={onClose}>
              <CloseIcon />
            </IconButton>
          </header>
          <div className="overflow-auto p-4">{children}</div>
        </div>
      )}
    </dialog>
  );
}

/** Ask for confirmation before an action that cannot be undone. */
export function Confirm({
  title,
  isOpen,
  onClose,
  onConfirm,
  confirm,
  children,
}: {
  title: string;
  isOpen: boolean;
  onClose: () => void;
  onConfirm: () => void;
  confirm: string;
  children: ReactNode;
}) {
  return (
    <Dialog title={title} isOpen={isOpen} onClose={onClose} width="max-w-md">
      <div className="text-sm text-secondary-foreground">{children}</div>
      <div className="mt-4 flex justify-end gap-2">
        <Button onClick={onClose}>Cancel</Button>
        <Button
          kind="danger"
          onClick={() => {
            onClose();
            onConfirm();
          }}
        >
          {confirm}
        </Button>
      </div>
    </Dialog>
  );
}
