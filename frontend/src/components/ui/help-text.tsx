/** A line of help; what stands between backticks is code. */
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
