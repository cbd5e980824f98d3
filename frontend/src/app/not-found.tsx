import { LinkButton } from "@/components/ui/button";
import { Empty, Page } from "@/components/ui/panel";

export default function NotFound() {
  return (
    <Page title="There is no such page">
      <Empty title="This address leads nowhere" actions={<LinkButton href="/">Go home</LinkButton>}>
        It may have been mistyped, or the page has moved.
      </Empty>
    </Page>
  );
}
