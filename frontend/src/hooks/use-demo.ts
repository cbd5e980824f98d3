"use client";
import { useMutation } from "@tanstack/react-query";
import { useRouter } from "next/navigation";
import { useToasts } from "@/components/ui/toasts";
import { startTask } from "@/lib/api/client";

export const DEMO_MINUTES = 10;

/** Start the demo run and open its page. */
export function useDemo() {
  const router = useRouter();
  const { notifyError } = useToasts();
  return useMutation({
    mutationFn: () => startTask("demo", { limits: { max_minutes: DEMO_MINUTES } }),
    onSuccess: (run) => router.push(`/runs/?id=${encodeURIComponent(run.id)}`),
    onError: notifyError,
  });
}
