"""A graphics screen as a picture file."""

from __future__ import annotations

import io

from emu.devices.vbe import Picture

RAW_MODES = {15: "BGR;15", 16: "BGR;16", 24: "BGR", 32: "BGRX"}  # Pillow's names of what is in the memory, by depth


def picture_png(picture: Picture) -> bytes:
    """A PNG file with a dot for each pixel. The same picture gives the same file.

    Raises ImportError when Pillow is not installed.
    """
    from PIL import Image

    mode = picture.mode
    size = (mode.width, mode.height)
    data = picture.data.ljust(picture.pitch * mode.height, b"\0")
    if mode.depth == 8:
        image = Image.frombuffer("P", size, data, "raw", "P", picture.pitch, 1)
        image.putpalette([value for colour in picture.palette for value in colour])
    else:
        image = Image.frombuffer("RGB", size, data, "raw", RAW_MODES[mode.depth], picture.pitch, 1)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
