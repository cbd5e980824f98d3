"use client";
import { useRef } from "react";
import { Button } from "@/components/ui/button";
import type { Sample } from "@/lib/api/client";
import { framesPerSecond, frameTime } from "@/lib/clip-frames";

/** A clip that plays, with a button to step one frame in each direction. */
function ClipPlayer({ sample, alt, className }: { sample: Sample; alt: string; className: string }) {
  const player = useRef<HTMLVideoElement>(null);
  const step = (frames: number) => {
    const video = player.current;
    if (!video) return;
    video.pause();
    video.currentTime = frameTime(video.currentTime, frames, framesPerSecond(sample), video.duration);
  };
  return (
    <div className="relative size-full">
      <video
        ref={player}
        key={sample.url}
        src={sample.url}
        poster={`${sample.url}?size=1024`}
        aria-label={alt}
        className={className}
        controls
        muted
        loop
        autoPlay
        playsInline
      />
      <div className="absolute top-2 right-2 flex gap-1">
        <Button size="small" onClick={() => step(-1)}>
          Previous frame
        </Button>
        <Button size="small" onClick={() => step(1)}>
          Next frame
        </Button>
      </div>
    </div>
  );
}

/** A generated image or clip. */
export function SampleMedia({ sample, alt, className }: { sample: Sample; alt: string; className: string }) {
  if (sample.media === "video") return <ClipPlayer sample={sample} alt={alt} className={className} />;
  return <img src={sample.url} alt={alt} className={className} />;
}

/** A mark on the poster of a clip. */
export function ClipMark({ sample }: { sample: Sample }) {
  if (sample.media !== "video") return null;
  return (
    <span className="absolute right-1 bottom-1 rounded bg-black/60 px-1 text-2xs text-white" aria-hidden>
      ▶
    </span>
  );
}
