import { startTransition, useEffect, useState } from "react";

/**
 * False for the first render after `isReady`, then true: content below the fold must not delay
 * the content above it.
 */
export function useDeferredMount(isReady: boolean): boolean {
  const [isMounted, setMounted] = useState(false);
  useEffect(() => {
    if (!isReady) return;
    const frame = requestAnimationFrame(() => startTransition(() => setMounted(true)));
    return () => cancelAnimationFrame(frame);
  }, [isReady]);
  return isMounted;
}
