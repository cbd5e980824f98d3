import { startTransition, useEffect, useState } from "react";

/**
 * False for the first render after `isReady`, then true: content below the fold must not delay
 * the content above it.
 */
export function useDeferredMount(isReady: boolean): boolean {
  const [isLater, setLater] = useState(false);
  useEffect(() => {
    if (!isReady) return;
    const frame = requestAnimationFrame(() => startTransition(() => setLater(true)));
    return () => cancelAnimationFrame(frame);
  }, [isReady]);
  return isLater;
}
