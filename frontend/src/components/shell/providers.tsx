"use client";
import { QueryClientProvider } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { ToastProvider } from "@/components/ui/toasts";
import { makeQueryClient } from "@/lib/api/queries";
import { SignIn } from "./sign-in";

export function Providers({ children }: { children: ReactNode }) {
  const [client] = useState(makeQueryClient);
  return (
    <QueryClientProvider client={client}>
      <ToastProvider>
        {children}
        <SignIn />
      </ToastProvider>
    </QueryClientProvider>
  );
}
