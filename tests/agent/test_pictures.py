"""Headers of pictures, damaged and hostile ones included, the limits of the providers, and scaling with Pillow."""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from deepctl.agent import models, pictures
from deepctl.agent.pictures import BMP, GIF, JPEG, PNG, WEBP, Fitted, Picture, PictureLimits, Unfit
from tests.support.pictures import noise, opened, png, whole

LIMITS = PictureLimits("Acme", frozenset((PNG, JPEG)), picture_bytes=200_000, side=400, animations=False)
RED = Image.new("RGB", (60, 40), (200, 10, 10))
FRAMES = [Image.new("RGB", (60, 40), (shade, 0, 0)) for shade in (0, 100, 200)]
SAMPLES = {
    "png": whole(RED, "PNG"),
    "jpeg": whole(RED, "JPEG"),
    "progressive jpeg": whole(RED, "JPEG", progressive=True),
    "gif": whole(RED, "GIF"),
    "animated gif": whole(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "webp": whole(RED, "WEBP"),
    "lossless webp": whole(RED, "WEBP", lossless=True),
    "animated webp": whole(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "bmp": whole(RED, "BMP"),
}


@pytest.mark.parametrize(("name", "content"), SAMPLES.items(), ids=SAMPLES)
def test_the_header_has_format_dimensions_and_frames(name: str, content: bytes) -> None:
    kind = {"png": PNG, "jpeg": JPEG, "gif": GIF, "webp": WEBP, "bmp": BMP}[name.split()[-1]]
    assert pictures.picture_of(content) == Picture(kind, 60, 40, "animated" in name)


def test_metadata_before_the_dimensions_of_a_jpeg_may_be_long() -> None:
    content = SAMPLES["jpeg"]
    segment = b"\xff\xe2" + struct.pack(">H", 65535) + bytes(65533)
    assert pictures.picture_of(content[:2] + segment * 200 + content[2:]) == Picture(JPEG, 60, 40)


@pytest.mark.parametrize(("name", "content"), SAMPLES.items(), ids=SAMPLES)
def test_a_header_that_is_cut_off_is_no_picture_and_never_an_error(name: str, content: bytes) -> None:
    lengths = [length for length in range(len(content)) if pictures.picture_of(content[:length]) is None]
    assert lengths == list(range(len(lengths))), "longer data has not less of a header"
    assert len(lengths) >= 10


@pytest.mark.parametrize(
    "content",
    [b"", b"BMW drives", b"GIF", b"%PDF-1.7", b"<svg/>", b"II*", png(0, 5), png(5, 0), png()[:-1] + b"\0", b"\xff\xd8"],
)
def test_anything_else_is_no_picture(content: bytes) -> None:
    assert pictures.picture_of(content) is None


HEADS = st.sampled_from([content[:length] for content in SAMPLES.values() for length in (4, 12, 16, 30, 400)])


@settings(max_examples=400, deadline=None)
@given(head=HEADS, rest=st.binary(max_size=200), flips=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255))))
@example(head=b"\xff\xd8", rest=b"\xff" * 200, flips=[])
def test_any_bytes_are_a_picture_or_none(head: bytes, rest: bytes, flips: list[tuple[int, int]]) -> None:
    content = bytearray(head + rest)
    for place, value in flips:
        content[place % len(content)] = value
    picture = pictures.picture_of(bytes(content))
    assert picture is None or (picture.width > 0 and picture.height > 0) or picture.media_type not in pictures._READERS
    result = pictures.fitted(bytes(content), LIMITS)
    assert isinstance(result, Unfit) or len(result.data) <= LIMITS.picture_bytes


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8" + b"\xff" * (40 << 20),
        b"\xff\xd8" + b"\xff\xe0\0\0" * (10 << 20),
        b"GIF89a\1\0\1\0\0\0\0" + b"!\0" + b"\1x" * (20 << 20),
        b"GIF89a\1\0\1\0\0\0\0" + b"!\0\0" * (14 << 20),
    ],
)
def test_a_header_without_an_end_takes_bounded_time(content: bytes) -> None:
    before = time.process_time()
    pictures.picture_of(content)
    assert time.process_time() - before < 1


# Limits


def _model(name: str, monkeypatch: pytest.MonkeyPatch) -> PictureLimits:
    for variable in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(variable, "sk-none")
    base_url = "http://localhost:9" if name == "openai-chat:tiny" else None
    return pictures.limits_of(models.resolve(name, base_url=base_url, environment=os.environ).model)


def test_each_provider_has_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    anthropic = _model("anthropic:claude-sonnet-4-6", monkeypatch)
    assert (anthropic.side, anthropic.many, anthropic.pictures) == (8000, (20, 2000), 100)
    assert anthropic.picture_bytes * 4 // 3 == 5 << 20, "the API counts base64"
    assert _model("openai:gpt-5", monkeypatch).provider == "OpenAI"
    assert _model("openai-chat:tiny", monkeypatch).strict is False


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (png(401, 3), "a picture for Acme can have up to 400 pixels a side, and it has 401 × 3"),
        (png(3, 3, bytes(200_000)), "a picture for Acme can have up to 195.3 KiB"),
        (SAMPLES["webp"], "Acme accepts no WebP pictures"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "Acme accepts no HEIC pictures"),
        (SAMPLES["bmp"], "Acme accepts no BMP pictures"),
    ],
)
def test_without_pillow_the_limit_is_named_and_what_to_install(
    content: bytes, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = pictures.fitted(content, LIMITS)
    assert isinstance(result, Unfit)
    assert result.reason == problem
    assert result.hint is not None
    assert "pillow" in result.hint or "HEIC" in problem


def test_an_animated_gif_is_refused_where_none_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = LIMITS._replace(formats=frozenset((GIF,)))
    assert pictures.fitted(SAMPLES["gif"], limits) == Fitted(SAMPLES["gif"], GIF)
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = pictures.fitted(SAMPLES["animated gif"], limits)
    assert isinstance(result, Unfit)
    assert result.reason == "Acme accepts no animated GIF pictures"


def test_a_server_whose_formats_are_not_known_gets_the_original_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = LIMITS._replace(strict=False)
    assert isinstance(pictures.fitted(SAMPLES["webp"], limits), Fitted)
    assert pictures.fitted(SAMPLES["webp"], limits)[1] == PNG
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert pictures.fitted(SAMPLES["webp"], limits) == Fitted(SAMPLES["webp"], WEBP)


# Scaling


def _scaled(content: bytes, limits: PictureLimits = LIMITS) -> tuple[Fitted, Image.Image]:
    result = pictures.fitted(content, limits)
    assert isinstance(result, Fitted), result
    assert len(result.data) <= limits.picture_bytes
    image = opened(result.data)
    assert pictures.picture_of(result.data) == Picture(result.media_type, *image.size)
    return result, image


def _pixel(image: Image.Image, x: int, y: int, mode: str = "RGB") -> tuple[int, ...]:
    pixel = image.convert(mode).getpixel((x, y))
    assert isinstance(pixel, tuple)
    return tuple(int(value) for value in pixel)


def test_a_picture_within_the_limits_is_not_touched() -> None:
    assert pictures.fitted(SAMPLES["png"], LIMITS) == Fitted(SAMPLES["png"], PNG)


@pytest.mark.parametrize("encoding", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_each_format_is_scaled_down_to_the_limit(encoding: str) -> None:
    limits = LIMITS._replace(formats=LIMITS.formats | {GIF, WEBP, BMP})
    result, image = _scaled(whole(Image.new("RGB", (900, 600), (200, 10, 10)), encoding), limits)
    assert image.size == (400, 267)
    assert result.media_type == (JPEG if encoding == "JPEG" else PNG)
    assert result.change is not None
    assert result.change.startswith("scaled down from 900 × 600 to 400 × 267 pixels")
    red, green, _ = _pixel(image, 200, 100)
    assert (red > 180, green < 40) == (True, True)


def test_a_picture_with_too_many_bytes_becomes_smaller_until_it_fits() -> None:
    content = whole(noise(390, 390), "PNG")
    assert len(content) > LIMITS.picture_bytes
    result, _ = _scaled(content)
    assert result.media_type == JPEG
    again = pictures.fitted(content, LIMITS)
    assert again == result
    alpha = noise(390, 390)
    alpha.putalpha(Image.linear_gradient("L").resize((390, 390)))
    _, image = _scaled(whole(alpha, "PNG"))
    assert image.mode == "RGBA"
    assert max(image.size) < 390


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "I;16", "CMYK"])
def test_every_kind_of_pixel_keeps_its_colour_and_transparency(mode: str) -> None:
    colours: dict[str, Any] = {
        "RGBA": (200, 10, 10, 0),
        "LA": (200, 0),
        "1": 1,
        "L": 200,
        "I;16": 200 << 8,
        "CMYK": (0, 250, 250, 50),
    }
    if mode == "P":
        image = Image.new("P", (500, 500), 1)
        image.putpalette([0, 0, 0, 200, 10, 10])
        content = whole(image, "PNG", transparency=1)
    else:
        content = whole(Image.new(mode, (500, 500), colours[mode]), "JPEG" if mode == "CMYK" else "PNG")
    _, image = _scaled(content)
    if mode in ("RGBA", "LA", "P"):
        assert _pixel(image, 100, 100, "RGBA")[3] == 0
    else:
        assert abs(_pixel(image, 100, 100)[0] - (255 if mode == "1" else 200)) < 10


@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_of_a_camera_is_applied(encoding: str) -> None:
    image = Image.new("RGB", (800, 600), (0, 0, 200))
    image.paste((200, 0, 0), (0, 0, 400, 600))  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # is shown turned right by 90 degrees: red is at the top
    _, sent = _scaled(whole(image, encoding, exif=exif), LIMITS._replace(formats=frozenset((JPEG, PNG, WEBP))))
    assert sent.size == (300, 400)
    assert sent.getexif().get(0x0112, 1) == 1
    assert _pixel(sent, 150, 40)[0] > 150
    assert _pixel(sent, 150, 360)[2] > 150


@pytest.mark.parametrize("name", ["animated gif", "animated webp"])
def test_of_an_animation_the_first_frame_is_sent(name: str) -> None:
    result, image = _scaled(SAMPLES[name])
    assert getattr(image, "n_frames", 1) == 1
    assert _pixel(image, 5, 5) == (0, 0, 0)
    assert result.change is not None
    assert result.change.endswith("reduced to its first frame")


@pytest.mark.parametrize("content", [png(60_000, 60_000), SAMPLES["gif"][:6] + b"\xff" * 4 + SAMPLES["gif"][10:]])
def test_a_decompression_bomb_is_not_decoded(content: bytes) -> None:
    result = pictures.fitted(content, LIMITS)
    assert isinstance(result, Unfit)
    assert result.reason.endswith(", and more than 64 million pixels are too many to scale it down")


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_bomb_in_a_format_whose_header_is_not_read_is_not_decoded(side: int) -> None:
    content = whole(Image.new("1", (side, side)), "TIFF", compression="group4")
    assert len(content) < 100_000
    result = pictures.fitted(content, LIMITS)
    assert isinstance(result, Unfit)
    assert result.reason.endswith(", and more than 64 million pixels are too many to scale it down")


@pytest.mark.parametrize("cut", [40, 200, 2000])
def test_a_damaged_picture_that_needs_scaling_is_refused(cut: int) -> None:
    content = whole(noise(500, 500), "PNG")[:cut]
    result = pictures.fitted(content, LIMITS)
    assert isinstance(result, Unfit)
    assert result.reason.endswith("it cannot be decoded, because it is damaged")


def test_a_thin_picture_keeps_a_pixel() -> None:
    _, image = _scaled(whole(Image.new("RGB", (5000, 1)), "PNG"))
    assert image.size == (400, 1)


def test_a_picture_for_a_smaller_side_is_scaled_to_it() -> None:
    result = pictures.fitted(SAMPLES["png"], LIMITS, side=30)
    assert isinstance(result, Fitted)
    assert opened(result.data).size == (30, 20)
