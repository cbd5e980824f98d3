/**
 * The path prefix of the studio, such as /studio; empty at the root of a host.
 *
 * The export is built with this marker, and `server/pages.py` replaces it when serving. Never compare
 * or measure it here: a value that the compiler derives from the marker is not replaced.
 */
export const BASE = "/__flowloom__";
