import { startTransition, useEffect, useState } from "react";

/**
 * False while a page first shows what it has (`isReady`), then true: what is below the fold does not hold
 * up what is above it.
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
