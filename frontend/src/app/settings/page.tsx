import type { Metadata } from "next";
import { Page } from "@/components/ui/panel";
import { Doctor } from "@/features/settings/doctor";
import { Folders, Trainers } from "@/features/settings/folders";
import { Secrets } from "@/features/settings/secrets";

export const metadata: Metadata = { title: "Settings" };

export default function Settings() {
  return (
    <Page title="Settings" lead="Secrets, folders, trainers and diagnostics.">
      <div className="grid items-start gap-4 lg:grid-cols-[minmax(0,1.400fr)_minmax(0,1fr)]">
        <div className="grid min-w-0 gap-4">
          <Secrets />
          <Doctor />
        </div>
        <div className="grid min-w-0 gap-4">
          <Folders />
          <Trainers />
        </div>
      </div>
    </Page>
  );
}
