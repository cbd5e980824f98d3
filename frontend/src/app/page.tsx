import { Page } from "@/components/ui/panel";
import { LatestSamples } from "@/features/home/latest-samples";
import { MachinePanel } from "@/features/home/machine";
import { NextSteps } from "@/features/home/next-steps";
import { RecentRuns } from "@/features/home/recent-runs";
import { StartButtons } from "@/features/home/start-buttons";

export default function Home() {
  return (
    <Page
      title="Studio"
      lead="Train Chroma and other flow-matching image models on this machine."
      actions={<StartButtons />}
    >
      <div className="grid items-start gap-4 lg:grid-cols-[minmax(0,1.700fr)_minmax(0,1fr)]">
        <div className="grid gap-4">
          <RecentRuns />
          <LatestSamples />
        </div>
        <div className="grid gap-4">
          <NextSteps />
          <MachinePanel />
        </div>
      </div>
    </Page>
  );
}
