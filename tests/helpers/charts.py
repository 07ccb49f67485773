"""Positions of the texts in an SVG chart."""

import re


def extents(chart):
    """Left and right end of each text, at 6.5 units a character."""
    texts = re.findall(r'<text([^>]*) x="([-\d.]+)"[^>]*?>([^<]*)<', chart)
    for before, x, text in texts:
        whole = re.search(rf'{re.escape(before)} x="{x}"([^>]*)>', chart)
        anchor = re.search(r'text-anchor="(\w+)"', whole[1] if whole else "")
        share = {"start": 0.0, "middle": 0.5, "end": 1.0}[
            anchor[1] if anchor else "start"
        ]
        left = float(x) - share * 6.5 * len(text)
        yield left, left + 6.5 * len(text)
