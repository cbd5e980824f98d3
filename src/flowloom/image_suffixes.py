"""Suffixes of image and video files, in lower case, for every part that reads, lists or shows them."""

COMMON_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Previews, and the formats that FLOW tries in this order if the file of a row is missing."""
JXL_SUFFIX = ".jxl"
"""FLOW reads a JPEG XL of the same stem instead of the file that a row names."""
CLIP_SUFFIXES = (".mp4", ".webm")
"""Previews that are clips."""
POSTER = ".poster"
"""End of the stem of a clip's poster: 00.mp4 has 00.poster.png."""
IMAGE_SUFFIXES = frozenset({
    *COMMON_SUFFIXES, JXL_SUFFIX,
    ".jpe", ".jfif", ".avif", ".heic", ".heif", ".bmp", ".gif", ".tif", ".tiff", ".svg",
})  # fmt: skip
"""All images of a dataset, also in formats that are reported because they cannot be decoded."""
VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".ogv",
)  # fmt: skip
"""All videos of a dataset."""
MEDIA_SUFFIXES = IMAGE_SUFFIXES.union(VIDEO_SUFFIXES)
MEDIA_TYPES = {
    ".png": "image/png",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".jxl": "image/jxl",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}
"""Formats that a browser may display. Everything else, above all SVG with scripts, is a download."""
