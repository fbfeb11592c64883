"""Pictures for tests: headers that are valid, with any bytes after them, and whole ones made with Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def png(width: int = 4, height: int = 3, rest: bytes = b"") -> bytes:
    """The valid header of a PNG picture of these dimensions, followed by `rest`."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + rest


def whole(image: Image.Image, encoding: str, **options: Any) -> bytes:
    """A picture in one of Pillow's encodings."""
    output = io.BytesIO()
    image.save(output, encoding, **options)
    return output.getvalue()


def noise(width: int, height: int) -> Image.Image:
    """A picture that cannot be compressed much."""
    return Image.effect_noise((width, height), 90).convert("RGB")


def opened(data: bytes) -> Image.Image:
    """A picture decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
