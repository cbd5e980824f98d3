/** Help text; text between backticks is shown as code. */
export function HelpText({ text }: { text: string }) {
  return text.split("`").map((part, index) =>
    index % 2 === 1 ? (
      <code key={index} className="figure text-[0.95em]">
        {part}
      </code>
    ) : (
      part
    ),
  );
}
