import type { ReactNode } from "react";

/** A line icon on a 16-pixel grid. */
function icon(paths: ReactNode) {
  return function Icon({ className = "size-4" }: { className?: string }) {
    return (
      <svg
        viewBox="0 0 16 16"
        className={`shrink-0 ${className}`}
        fill="none"
        stroke="currentColor"
        strokeWidth="1.4"
        strokeLinecap="round"
        strokeLinejoin="round"
        aria-hidden="true"
      >
        {paths}
      </svg>
    );
  };
}

export const HomeIcon = icon(<path d="M2.500 7 8 2.500 13.500 7v6.500h-4V9.500h-3v4h-4z" />);
export const RunsIcon = icon(
  <path d="M2 12.500c2 0 2.500-8 4.500-8s2 5 3.500 5 1.500-2.500 4-2.500M2 14.500h12" />,
);
export const TrainIcon = icon(
  <path d="M2 4.500h3M8 4.500h6M2 8h1M6 8h3M12 8h2M2 11.500h4M9 11.500h5M4.500 2v1M4.500 6v8M10.500 2v4M10.500 10v4" />,
);
export const KohyaIcon = icon(<path d="M3 2.500h7l3 3v8H3zM10 2.500v3h3M5.500 8.500h5M5.500 11h3" />);
export const DataIcon = icon(
  <>
    <rect x="2" y="3" width="12" height="10" rx="1" />
    <path d="m2.500 11.500 3.500-4 3 3 2-2 3 3" />
    <circle cx="10.800" cy="6" r="1" />
  </>,
);
export const ModelIcon = icon(
  <path d="m8 1.800 5.500 3v6.400L8 14.200l-5.500-3V4.800zM2.800 5 8 8l5.200-3M8 8v6" />,
);
export const PlayIcon = icon(<path d="M4.500 3v10l8-5z" />);
export const BrushIcon = icon(
  <path d="M13.500 2.500c-3 1-5.500 3.500-6.500 6l1 1c2.500-1 5-3.500 5.500-7zM6.500 9.500c-2 0-2 2.500-4 3.500 2.500 1 5 0 5-2.500" />,
);
export const SettingsIcon = icon(
  <path d="M2 4.500h6M11 4.500h3M2 8h2M7 8h7M2 11.500h7M12 11.500h2M9.500 3v3M5.500 6.500v3M10.500 10v3" />,
);
export const StopIcon = icon(<rect x="4" y="4" width="8" height="8" rx="1" />);
export const SaveIcon = icon(<path d="M3 3h8l2 2v8H3zM5.500 3v3h4V3M5 13V9.500h6V13" />);
export const SunIcon = icon(
  <>
    <circle cx="8" cy="8" r="2.600" />
    <path d="M8 1.500v1.500M8 13v1.500M1.500 8H3M13 8h1.500M3.400 3.400l1 1M11.600 11.600l1 1M12.600 3.400l-1 1M4.400 11.600l-1 1" />
  </>,
);
export const MoonIcon = icon(<path d="M13 9.800A5.500 5.500 0 0 1 6.200 3a5.500 5.500 0 1 0 6.800 6.800z" />);
export const CloseIcon = icon(<path d="m4 4 8 8M12 4l-8 8" />);
export const MenuIcon = icon(<path d="M2.500 4.500h11M2.500 8h11M2.500 11.500h11" />);
export const ChevronIcon = icon(<path d="m6 4 4 4-4 4" />);
export const UpIcon = icon(<path d="M8 12.500v-9M4.500 7 8 3.500 11.500 7" />);
export const DownIcon = icon(<path d="M8 3.500v9M4.500 9 8 12.500 11.500 9" />);
export const DownloadIcon = icon(<path d="M8 2.500v7.500M5 7.500l3 3 3-3M3 13.500h10" />);
export const UploadIcon = icon(<path d="M8 10.500V3M5 5.500l3-3 3 3M3 13.500h10" />);
export const CopyIcon = icon(<path d="M5.500 5.500h8v8h-8zM10.500 5.500v-3h-8v8h3" />);
export const TrashIcon = icon(
  <path d="M3 4.500h10M6 4.500v-2h4v2M4.500 4.500l.5 9h6l.5-9M6.800 7v4M9.200 7v4" />,
);
export const SearchIcon = icon(
  <>
    <circle cx="7" cy="7" r="4.200" />
    <path d="m10.200 10.200 3.300 3.300" />
  </>,
);
export const PlusIcon = icon(<path d="M8 3v10M3 8h10" />);
export const UndoIcon = icon(<path d="M3 6.500h6.500a3.500 3.500 0 0 1 0 7H6M5.500 4 3 6.500 5.500 9" />);
export const WarnIcon = icon(<path d="M8 2.500 14 13H2zM8 6.500v3M8 11.200v.1" />);
export const CheckIcon = icon(<path d="m3 8.500 3.500 3.500L13 4.500" />);
export const GripIcon = icon(<path d="M6 4v.1M6 8v.1M6 12v.1M10 4v.1M10 8v.1M10 12v.1" />);

/** The logo: warp and weft of a loom. */
export function Logo({ className = "size-5" }: { className?: string }) {
  return (
    <svg
      viewBox="0 0 24 24"
      className={className}
      fill="none"
      stroke="currentColor"
      strokeWidth="2.400"
      strokeLinecap="round"
      aria-hidden="true"
    >
      <path d="M4 7h1M10 7h10M4 12h6M14.500 12H20M4 17h1M10 17h10" />
      <path
        d="M7.500 3v11M7.500 19.500V21M12 3v1.500M12 9.500V14.500M12 19.500V21M16.500 3v6.500M16.500 14.500V21"
        opacity=".55"
      />
    </svg>
  );
}
