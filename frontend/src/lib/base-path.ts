/**
 * Below which path the studio lies, such as /studio; empty where it has a host name of its own.
 *
 * The export is built with this mark, and `server/pages.py` puts the path in its place as it serves it. Never compare
 * or measure it here: whatever the compiler works out of the mark by itself is not replaced.
 */
export const BASE = "/__flowloom__";
