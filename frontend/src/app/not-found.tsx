import { LinkButton } from "@/components/ui/button";
import { Empty, Page } from "@/components/ui/panel";

export default function NotFound() {
  return (
    <Page title="Page not found">
      <Empty title="Nothing at this address" actions={<LinkButton href="/">Home</LinkButton>}>
        Check the address, or go to the home page.
      </Empty>
    </Page>
  );
}
