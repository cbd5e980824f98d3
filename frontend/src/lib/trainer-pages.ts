/** The pages with a trainer's form, by trainer. */
const TRAINER_PAGES: Readonly<Record<string, string>> = {
  flow: "/flow-training/",
  kohya: "/kohya-training/",
};

/** The trainer whose form a run's configuration fits: the demo has FLOW's configuration. */
export const formTrainer = (trainer: string) => (trainer === "demo" ? "flow" : trainer);

/** The address of a trainer's form; null if it has no page. */
export function trainerHref(trainer: string, params: Record<string, string>): string | null {
  const page = TRAINER_PAGES[trainer];
  return page ? `${page}?${new URLSearchParams(params)}` : null;
}
