"""Pictures for models: format and dimensions from the header, the limits of the providers, and scaling with Pillow.

A picture that a provider cannot use fails the whole request, and again every later one, because the picture stays in
the conversation. So each picture is checked before it is sent. The type is that of the content; names and declared
types are not used. Pillow is optional (extra `pictures`): without it, a picture that is too large is not sent.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pydantic_ai.models import Model

from deepctl import distribution
from deepctl.domain.providers import is_openais
from deepctl.quantities import size

if TYPE_CHECKING:
    from PIL.Image import Image

EXTRA = "pictures"
HEAD = 32
"""Bytes that identify the format of a file."""
MAX_SOURCE = 50 << 20
"""Bytes of a file that is read in order to be scaled down."""
MAX_PIXELS = 64_000_000
"""Pixels of a picture that is decoded: 256 MB of memory. A small file can declare millions of times as many."""

SCALED_SIDE = 2_048
"""The largest side in pixels of a picture that is scaled down or converted. The providers scale larger pictures down
themselves: OpenAI to 2,048 pixels, Anthropic to 1,568 (sources: the pages below).
"""

_MAX_SEGMENTS = 2_000
"""Segments before the dimensions of a JPEG. Metadata of 64 KiB a segment needs far less."""
_MAX_BLOCKS = 200_000
"""Blocks, and pieces of up to 255 bytes in them, in which the second frame of a GIF is searched."""

PNG, JPEG, GIF, WEBP, BMP = "image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"
TIFF, AVIF, HEIC, HEIF = "image/tiff", "image/avif", "image/heic", "image/heif"
_PILLOW = {PNG: "PNG", JPEG: "JPEG", GIF: "GIF", WEBP: "WEBP", BMP: "BMP", TIFF: "TIFF", AVIF: "AVIF"}
"""The decoder of Pillow for each format. Only this one is tried. Pillow decodes no HEIC."""
_BRANDS = {b"avif": AVIF, b"avis": AVIF, b"mif1": HEIF, b"msf1": HEIF}
_BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), HEIC)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class Picture(NamedTuple):
    """What the header of a picture says; dimensions in pixels, 0 for TIFF, AVIF and HEIC, which are only recognised."""

    media_type: str
    width: int = 0
    height: int = 0
    is_animated: bool = False

    @property
    def dimensions(self) -> str:
        """Width and height in words."""
        return f"{self.width:,} × {self.height:,}"


def media_type(head: bytes) -> str | None:
    """The format of a picture by its first bytes, `None` for anything else.

    Source: the formats' own signatures (PNG, JPEG, GIF87a and GIF89a, RIFF header of WebP, BMP, TIFF, ISO brands).
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WEBP
    if head.startswith((b"II*\0", b"MM\0*")):
        return TIFF
    # "BM" alone could begin a text.
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return BMP
    return _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None


def picture_of(data: bytes) -> Picture | None:
    """The picture in `data`; `None` for other data, and for a damaged or cut header. Takes bounded time."""
    kind = media_type(data[:HEAD])
    reader = _READERS.get(kind or "")
    if kind is None or reader is None:
        return Picture(kind) if kind is not None else None
    try:
        picture = reader(data)
    except (struct.error, IndexError):
        return None  # the header is cut off
    return picture if picture is not None and picture.width > 0 and picture.height > 0 else None


def _png(data: bytes) -> Picture | None:
    length, name, width, height = struct.unpack_from(">I4sII", data, 8)
    (checksum,) = struct.unpack_from(">I", data, 29)
    is_header = length == 13 and name == b"IHDR" and zlib.crc32(data[12:29]) == checksum
    return Picture(PNG, width, height) if is_header else None


def _jpeg(data: bytes) -> Picture | None:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        mark, marker = data[at], data[at + 1]
        if mark != 0xFF or marker in (0x00, 0xD9, 0xDA):
            return None  # the frame begins before the first scan and the end
        if marker == 0xFF:
            at += 1  # a fill byte
            continue
        length, height, width = struct.unpack_from(">HxHH", data, at + 2)
        if marker in _START_OF_FRAME:
            return Picture(JPEG, width, height)
        at += 2 + length
    return None


def _gif(data: bytes) -> Picture | None:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    return Picture(GIF, width, height, _has_frames(data, 13 + _colors(flags)))


def _colors(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _has_frames(data: bytes, at: int) -> bool:
    """Whether a GIF, whose blocks begin at `at`, has a second frame."""
    frames = 0
    is_within = False  # in the data of a block, which is a list of short pieces
    try:
        for _ in range(_MAX_BLOCKS):
            if is_within:
                is_within = data[at] > 0
                at += 1 + data[at]
                continue
            if data[at] == 0x2C:
                frames += 1
                if frames > 1:
                    return True
                at += 11 + _colors(data[at + 9])
            elif data[at] == 0x21:
                at += 2
            else:
                return False
            is_within = True
    except IndexError:
        pass  # the end is missing, which decoders accept
    return False


def _webp(data: bytes) -> Picture | None:
    chunk = data[12:16]
    if chunk == b"VP8X":
        flags, width, height = data[20], int.from_bytes(data[24:27], "little"), int.from_bytes(data[27:30], "little")
        return Picture(WEBP, width + 1, height + 1, bool(flags & 2)) if len(data) >= 30 else None
    if chunk == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return Picture(WEBP, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Picture(WEBP, width & 0x3FFF, height & 0x3FFF)
    return None


def _bmp(data: bytes) -> Picture | None:
    if data[14] == 12:
        return Picture(BMP, *struct.unpack_from("<HH", data, 18))
    width, height = struct.unpack_from("<ii", data, 18)
    return Picture(BMP, width, abs(height))


_READERS = {PNG: _png, JPEG: _jpeg, GIF: _gif, WEBP: _webp, BMP: _bmp}


class PictureLimits(NamedTuple):
    """What a provider accepts. Sizes are bytes before base64, `side` is in pixels; `None` means no known limit.

    A format outside `formats` is converted if possible; otherwise it is sent only if not `strict`.
    """

    provider: str
    formats: frozenset[str]
    strict: bool = True
    picture_bytes: int = 5 << 20
    side: int | None = None
    pictures: int | None = None
    request_bytes: int = 20 << 20
    many: tuple[int, int] | None = None
    """A number of pictures in a request, and the `side` of each if there are more."""
    animations: bool = True
    """Whether animated GIFs are accepted."""


_COMMON = frozenset((PNG, JPEG, GIF, WEBP))
_LIMITS = {
    # platform.claude.com/docs/en/build-with-claude/vision: 8,000 px, 2,000 px beyond 20 pictures, 100 pictures, 32 MB a
    # request. 5 MB of base64 a picture, as the API says: "image exceeds 5 MB maximum: 8259148 bytes > 5242880 bytes".
    "anthropic": PictureLimits("Anthropic", _COMMON, picture_bytes=15 << 18, side=8000, pictures=100, many=(20, 2000)),
    # docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Message.html: 20 pictures of 3.75 MB and 8,000 px.
    "bedrock": PictureLimits(
        "Bedrock", _COMMON, picture_bytes=3_750_000, side=8000, pictures=20, request_bytes=15_000_000
    ),
    # ai.google.dev/gemini-api/docs/image-understanding: no GIF, 20 MB a request with base64. Vertex AI: 3,000 pictures.
    "google": PictureLimits(
        "Google", frozenset((PNG, JPEG, WEBP, HEIC, HEIF)), pictures=3000, request_bytes=14 << 20, animations=False
    ),
    # platform.openai.com/docs/guides/images-vision: 20 MB a picture, 50 MB and 500 pictures a request, no animations.
    "openai": PictureLimits("OpenAI", _COMMON, pictures=500, animations=False),
}
_OTHERS = PictureLimits("this server", frozenset((PNG, JPEG)), strict=False)
"""Limits for servers that are not known. PNG and JPEG are the formats that all of them decode: llama.cpp decodes with
stb_image, which has no WebP, and Ollama with Go's decoders for PNG, JPEG and WebP. 5 MiB a picture and 20 MiB a request
are limits of deepctl, for all providers: pictures are sent again with each request.
"""
_ANYTHING = PictureLimits("this model", frozenset((*_PILLOW, HEIC, HEIF)))


def limits_of(model: Model) -> PictureLimits:
    """The limits of the provider of a model."""
    system = model.system.partition("-")[0]
    if system in ("function", "test"):
        return _ANYTHING
    if system == "openai":
        return _LIMITS["openai"] if is_openais(model.base_url or "") else _OTHERS
    return _LIMITS.get(system, _OTHERS)


class Fitted(NamedTuple):
    """A picture in a form that a provider accepts. `change` says what was changed, `None` for the original."""

    data: bytes
    media_type: str
    change: str | None = None


class Unfit(NamedTuple):
    """Why a picture is not sent, and what the user can do."""

    reason: str
    hint: str | None = None

    @property
    def action(self) -> str:
        """The hint as the continuation of a sentence about the reason."""
        return f" {self.hint}" if self.hint is not None else ""


def fitted(data: bytes, limits: PictureLimits, side: int | None = None) -> Fitted | Unfit:
    """A picture within the limits of a provider, scaled down or converted if necessary. Never raises.

    `side` is a smaller limit in pixels than that of the provider.
    """
    picture = picture_of(data)
    if picture is None:
        return Unfit("it is not a valid picture, or its beginning is damaged")
    side = side or limits.side
    is_static = limits.animations or not picture.is_animated or picture.media_type != GIF
    problem = None
    if side is not None and max(picture.width, picture.height) > side:
        problem = f"a picture for {limits.provider} can have up to {side:,} pixels a side"
        problem += f", and it has {picture.dimensions}"
    elif len(data) > limits.picture_bytes:
        problem = f"a picture for {limits.provider} can have up to {size(limits.picture_bytes)}"
    elif picture.media_type not in limits.formats:
        problem = f"{limits.provider} accepts no {_name(picture.media_type)} pictures"
    elif not is_static:
        problem = f"{limits.provider} accepts no animated GIF pictures"
    if problem is None:
        return Fitted(data, picture.media_type)
    result = _scaled(data, picture, limits.picture_bytes, side)
    if isinstance(result, Unfit):
        is_untried = not result.reason and len(data) <= limits.picture_bytes
        if is_untried and not limits.strict and picture.media_type in _COMMON:
            return Fitted(data, picture.media_type)
        return Unfit(f"{problem}{result.reason}", result.hint)
    return result


def _name(kind: str) -> str:
    return kind.partition("/")[2].upper().replace("WEBP", "WebP")


def _scaled(data: bytes, picture: Picture, most: int, side: int | None) -> Fitted | Unfit:
    """The first frame of a picture as PNG or JPEG of at most `most` bytes and `side` pixels a side.

    `reason` of a failure continues a sentence.
    """
    if picture.media_type not in _PILLOW:
        return Unfit("", "Convert it to PNG or JPEG first.")
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        return Unfit("", f"Scaling and converting need Pillow. Install it with: {distribution.to_install(EXTRA)}")
    return _decoded(data, picture, most, side)


_TOO_MANY_PIXELS = Unfit(
    f", and more than {MAX_PIXELS // 1_000_000} million pixels are too many to scale it down", "Scale it down first."
)


_DECODING = threading.Lock()


@lru_cache(maxsize=16)
def _decoded(data: bytes, picture: Picture, most: int, side: int | None) -> Fitted | Unfit:
    """The same with Pillow. The result is the same each time, so that a cached prompt stays cached."""
    from PIL import Image

    if picture.width * picture.height > MAX_PIXELS:
        return _TOO_MANY_PIXELS
    try:
        # The filters of warnings belong to the process, not to a thread.
        with _DECODING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata
            with Image.open(io.BytesIO(data), formats=[_PILLOW[picture.media_type]]) as image:
                if image.width * image.height > MAX_PIXELS:
                    return _TOO_MANY_PIXELS
                return _encoded(image, picture, most, side)
    except Image.DecompressionBombError:
        return _TOO_MANY_PIXELS
    except Exception:  # the decoders raise many kinds for damaged data
        return Unfit(", and it cannot be decoded, because it is damaged")


def _encoded(image: Image, picture: Picture, most: int, side: int | None) -> Fitted | Unfit:
    from PIL import ImageOps
    from PIL.Image import Resampling

    before = image.size
    side = min(side or SCALED_SIDE, SCALED_SIDE)
    if picture.media_type == JPEG:
        image.draft(None, (side, side))  # decodes at a fraction of the dimensions
    ImageOps.exif_transpose(image, in_place=True)
    has_alpha = image.has_transparency_data
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256))  # 16 bits; Pillow would cut off bright values
    mode = "RGBA" if has_alpha else "L" if image.mode in ("1", "L", "I") else "RGB"
    whole = image if image.mode == mode else image.convert(mode)
    for _ in range(8):
        small = whole.copy() if max(whole.size) > side else whole
        small.thumbnail((side, side), Resampling.LANCZOS)
        lengths = []
        for name, kind in _encodings(picture, has_alpha):
            output = io.BytesIO()
            small.save(output, name, **({"quality": 85} if name == "JPEG" else {}))
            data = output.getvalue()
            lengths.append(len(data))
            if len(data) <= most:
                return Fitted(data, kind, _change(picture, before, small.size, kind))
        side = int(max(small.size) * min(0.9, (most / min(lengths)) ** 0.5))
        if side < 1:
            break
    return Unfit(", and it could not be made small enough")


def _encodings(picture: Picture, has_alpha: bool) -> Iterator[tuple[str, str]]:
    """The encodings to try, in this order: without loss first, but not for a picture that already had a loss."""
    if picture.media_type != JPEG:
        yield "PNG", PNG
    if not has_alpha:
        yield "JPEG", JPEG


def _change(picture: Picture, before: Sequence[int], after: Sequence[int], kind: str) -> str:
    changes = []
    if sorted(before) != sorted(after):
        changes.append(f"scaled down from {before[0]:,} × {before[1]:,} to {after[0]:,} × {after[1]:,} pixels")
    if picture.media_type != kind:
        changes.append(f"converted from {_name(picture.media_type)} to {_name(kind)}")
    if picture.is_animated:
        changes.append("reduced to its first frame")
    return ", ".join(changes) or "compressed"
