"use client";
import Link from "next/link";
import { type ReactNode, useRef } from "react";
import { IconButton } from "@/components/ui/button";
import { CloseIcon, Logo, MenuIcon } from "@/components/ui/icons";
import { Navigation } from "./navigation";
import { SystemMeters } from "./system-meters";
import { ThemeButton } from "./theme-button";

function Brand() {
  return (
    <Link href="/" className="flex items-center gap-2 px-2 font-semibold tracking-tight">
      <Logo className="size-5 text-primary" />
      Flowloom
    </Link>
  );
}

/** The frame of every page, with the navigation in a sidebar or, on small screens, a drawer. */
export function AppShell({ children }: { children: ReactNode }) {
  const drawer = useRef<HTMLDialogElement>(null);
  const close = () => drawer.current?.close();
  return (
    <div className="min-h-dvh lg:grid lg:grid-cols-[13.5rem_minmax(0,1fr)]">
      <a
        href="#main"
        className="sr-only z-50 rounded bg-primary px-3 py-2 text-primary-foreground focus:not-sr-only focus:fixed focus:top-2 focus:left-2"
      >
        Skip to content
      </a>
      <aside className="sticky top-0 hidden h-dvh flex-col gap-6 border-r bg-card px-3 py-4 lg:flex">
        <div className="flex items-center justify-between">
          <Brand />
          <ThemeButton />
        </div>
        <div className="min-h-0 flex-1 overflow-y-auto">
          <Navigation />
        </div>
        <div className="px-2">
          <SystemMeters />
        </div>
      </aside>
      <header className="sticky top-0 z-20 flex h-12 items-center justify-between border-b bg-card px-2 lg:hidden">
        <div className="flex items-center gap-1">
          <IconButton label="Open menu" className="size-9" onClick={() => drawer.current?.showModal()}>
            <MenuIcon />
          </IconButton>
          <Brand />
        </div>
        <ThemeButton />
      </header>
      <dialog
        ref={drawer}
        aria-label="Menu"
        onClick={(event) => event.target === drawer.current && close()}
        onKeyDown={() => {}}
        className="m-0 h-dvh max-h-none w-64 border-r bg-card p-4 shadow-float"
      >
        <div className="mb-4 flex items-center justify-between">
          <Brand />
          <IconButton label="Close menu" onClick={close}>
            <CloseIcon />
          </IconButton>
        </div>
        <Navigation onGo={close} />
        <div className="mt-8 px-2">
          <SystemMeters />
        </div>
      </dialog>
      <div className="min-w-0">{children}</div>
    </div>
  );
}
