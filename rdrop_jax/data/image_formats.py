"""Formats and endings of image files that this build of Pillow reads. Needs no jax."""

from PIL import Image, features

# Endings of image files and their formats.
_FORMAT_OF = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    ".webp": "WEBP",
    ".gif": "GIF",
    ".avif": "AVIF",
}
_OPTIONAL = ("WEBP", "AVIF")  # Pillow may be built without them


def _is_built(format: str) -> bool:
    """Tells formats that this Pillow opens."""
    if format in _OPTIONAL:
        name = format.lower()
        return name in features.modules and bool(features.check_module(name))
    return format in Image.OPEN


Image.init()
# What this build of Pillow reads.
FORMATS = tuple(f for f in dict.fromkeys(_FORMAT_OF.values()) if _is_built(f))
SUFFIXES = tuple(end for end, format in _FORMAT_OF.items() if format in FORMATS)
