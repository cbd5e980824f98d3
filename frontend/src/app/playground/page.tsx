import { ChoreForm } from "@/components/form/chore";
import { Page } from "@/components/ui/surface";

export default function Playground() {
  return (
    <Page
      title="Playground"
      lead="Draw with a base, a checkpoint or a LoRA. Each try is a run: its pictures stay with their settings."
    >
      <ChoreForm chore="sample" initial={{}} start="Draw" />
    </Page>
  );
}
