import { Begin } from "@/components/home/demo-card";
import { Latest } from "@/components/home/latest";
import { Machine } from "@/components/home/machine";
import { NextSteps } from "@/components/home/next-steps";
import { Now } from "@/components/home/now";
import { Page } from "@/components/ui/surface";

export default function Home() {
  return (
    <Page
      title="Studio"
      lead="Train Chroma and other flow-matching image models on this machine."
      actions={<Begin />}
    >
      <div className="grid items-start gap-4 lg:grid-cols-[minmax(0,1.700fr)_minmax(0,1fr)]">
        <div className="grid gap-4">
          <Now />
          <Latest />
        </div>
        <div className="grid gap-4">
          <NextSteps />
          <Machine />
        </div>
      </div>
    </Page>
  );
}
