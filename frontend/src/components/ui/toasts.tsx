"use client";
import { createContext, type ReactNode, useCallback, useContext, useMemo, useRef, useState } from "react";
import { Problem } from "@/lib/api/client";
import { IconButton } from "./button";
import { cx } from "./class-names";
import { CloseIcon } from "./icons";

export interface Toast {
  id: number;
  title: string;
  detail?: string;
  isBad: boolean;
}

interface Toasts {
  notify: (title: string, detail?: string) => void;
  notifyError: (error: unknown) => void;
}

const Context = createContext<Toasts>({ notify: () => {}, notifyError: () => {} });
const SHOWN_MS = 5000;
const MAX_SUCCESSES = 3;
const MAX_ERRORS = 20;

/** Add a toast. Old successes are dropped first; errors stay, so that none of many is missed. */
export function withToast(all: readonly Toast[], toast: Toast): Toast[] {
  const next = [...all, toast];
  const successes = next.filter((each) => !each.isBad).slice(-MAX_SUCCESSES);
  const errors = next.filter((each) => each.isBad).slice(-MAX_ERRORS);
  return next.filter((each) => successes.includes(each) || errors.includes(each));
}

export const useToasts = () => useContext(Context);

/** Toasts in the corner; errors stay until they are dismissed. */
export function ToastProvider({ children }: { children: ReactNode }) {
  const [toasts, setToasts] = useState<Toast[]>([]);
  const next = useRef(1);
  const dismiss = useCallback((id: number) => setToasts((all) => all.filter((toast) => toast.id !== id)), []);
  const add = useCallback(
    (toast: Omit<Toast, "id">) => {
      const id = next.current++;
      setToasts((all) => withToast(all, { ...toast, id }));
      if (!toast.isBad) setTimeout(() => dismiss(id), SHOWN_MS);
    },
    [dismiss],
  );
  const value = useMemo<Toasts>(
    () => ({
      notify: (title, detail) => add({ title, detail, isBad: false }),
      notifyError: (error) => {
        const problem = error instanceof Problem ? error : null;
        const title = problem?.title ?? (error instanceof Error ? error.message : String(error));
        add({ title, detail: problem ? `${problem.detail} ${problem.hint}`.trim() : undefined, isBad: true });
      },
    }),
    [add],
  );
  return (
    <Context value={value}>
      {children}
      <div
        role="status"
        className="fixed right-4 bottom-4 z-50 grid max-h-[80dvh] w-[min(24rem,calc(100vw-2rem))] gap-2 overflow-y-auto"
      >
        {toasts.map((toast) => (
          <div
            key={toast.id}
            className={cx(
              "flex gap-2 rounded-lg border bg-card py-2 pr-1 pl-3 text-sm shadow-float",
              toast.isBad && "border-destructive",
            )}
          >
            <div className="min-w-0 flex-1 py-0.5">
              <p className="font-medium">{toast.title}</p>
              {toast.detail && (
                <p className="text-xs text-secondary-foreground [overflow-wrap:anywhere]">{toast.detail}</p>
              )}
            </div>
            <IconButton label="Dismiss" onClick={() => dismiss(toast.id)}>
              <CloseIcon />
            </IconButton>
          </div>
        ))}
      </div>
    </Context>
  );
}
