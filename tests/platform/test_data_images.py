"""Image files of every kind, written by Pillow, tifffile or by hand, read back as RGB."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from stratum.data import images
from stratum.data.images import DepthRule, ImageError, decode_image, decode_pixels, depth_rule, read_image

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
DEEP = GREY.astype(np.uint16) * 257


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG with any channels, which Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def as_array(data: bytes, depth: DepthRule | None = None) -> np.ndarray:
    image = decode_image(data, depth, "test")
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_rgb_is_read_as_it_is(kind: str) -> None:
    np.testing.assert_array_equal(as_array(encode(Image.fromarray(COLOUR), kind)), COLOUR)


def test_jpeg_is_what_pillow_decodes() -> None:
    data = encode(Image.fromarray(COLOUR), "JPEG")
    np.testing.assert_array_equal(as_array(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_grey_is_repeated(kind: str) -> None:
    np.testing.assert_array_equal(as_array(encode(Image.fromarray(GREY), kind)), np.repeat(GREY[..., None], 3, axis=2))


def test_one_bit_is_black_and_white() -> None:
    data = encode(Image.fromarray(GREY > 100))
    np.testing.assert_array_equal(as_array(data)[..., 1], np.where(GREY > 100, 255, 0))


def test_palette_becomes_its_colours() -> None:
    image = Image.frombytes("P", (8, 6), ((GREY // 5) % 4).tobytes())
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)
    image.putpalette(palette.reshape(-1).tolist())
    np.testing.assert_array_equal(as_array(encode(image)), palette[(GREY // 5) % 4])


def test_transparency_is_laid_over_white() -> None:
    alpha = np.full_like(GREY, 255)
    alpha[0], alpha[1] = 0, 128
    read = as_array(encode(Image.fromarray(np.dstack([COLOUR, alpha]))))
    np.testing.assert_array_equal(read[0], 255)
    np.testing.assert_allclose(read[1], COLOUR[1] * (128 / 255) + 255 * (127 / 255), atol=0.51)
    np.testing.assert_array_equal(read[2:], COLOUR[2:])


def test_grey_with_alpha() -> None:
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(np.full_like(GREY, 255))])
    np.testing.assert_array_equal(as_array(encode(image))[..., 0], GREY)


def test_cmyk_becomes_rgb() -> None:
    image = Image.fromarray(COLOUR).convert("CMYK")
    np.testing.assert_array_equal(as_array(encode(image, "TIFF")), COLOUR)


@pytest.mark.parametrize(
    "data", [encode(Image.fromarray(DEEP)), encode(Image.fromarray(DEEP), "TIFF"), tiff(DEEP), tiff(DEEP, byteorder=">")]
)
def test_deep_grey_keeps_its_values(data: bytes) -> None:
    pixels = decode_pixels(data)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, DEEP)
    np.testing.assert_array_equal(as_array(data)[..., 2], GREY)


def test_deep_colour_is_not_cut_to_eight_bits() -> None:
    deep = np.stack([DEEP, DEEP + 100, DEEP // 3], axis=-1)
    for data in (
        deep_png(deep, 2),
        tiff(deep, photometric="rgb"),
        tiff(np.moveaxis(deep, -1, 0), photometric="rgb", planarconfig="separate"),
    ):
        np.testing.assert_array_equal(decode_pixels(data), deep)


def test_deep_grey_with_alpha_is_laid_over_white() -> None:
    alpha = np.full_like(DEEP, 65535)
    alpha[0] = 0
    read = decode_pixels(deep_png(np.dstack([DEEP, alpha]), 4))
    np.testing.assert_array_equal(read[0], 65535)
    np.testing.assert_array_equal(read[1:], DEEP[1:])


def test_depth_rule_scales_and_clips() -> None:
    rule = DepthRule(low=1000, high=3000)
    values = np.array([[0, 1000, 2000, 3000, 65535, 1004]], dtype=np.uint16)
    np.testing.assert_array_equal(rule.apply(values), [[0, 0, 128, 255, 255, 1]])
    np.testing.assert_array_equal(as_array(encode(Image.fromarray(values)), rule)[..., 0], [[0, 0, 128, 255, 255, 1]])


def test_depth_rule_leaves_eight_bits_alone() -> None:
    np.testing.assert_array_equal(as_array(encode(Image.fromarray(COLOUR)), DepthRule(low=10, high=20)), COLOUR)


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (5, 5), (0, 65536)])
def test_depth_rule_refuses_what_is_no_range(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="depth rule"):
        DepthRule(low=low, high=high)


def test_depth_rule_of_a_set_are_pooled_percentiles() -> None:
    rng = np.random.default_rng(0)
    deep = [rng.normal(mean, 300, (90, 110)).clip(0, 65535).astype(np.uint16) for mean in (4000, 9000, 6000)]
    rule = depth_rule([*deep, GREY])
    pooled = np.concatenate([d.reshape(-1) for d in deep])
    assert rule is not None
    assert [rule.low, rule.high] == np.percentile(pooled, [0.1, 99.9], method="inverted_cdf").tolist()
    assert depth_rule(deep[::-1]) == rule


def test_depth_rule_of_eight_bits_is_none_and_of_one_value_is_valid() -> None:
    assert depth_rule([GREY, COLOUR]) is None
    for value in (0, 700, 65535):
        rule = depth_rule([np.full((4, 4), value, dtype=np.uint16)])
        assert rule is not None
        assert rule.high == rule.low + 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(COLOUR), kind, exif=exif)
    np.testing.assert_array_equal(as_array(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_orientation_of_deep_images() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    read = decode_pixels(encode(Image.fromarray(DEEP), exif=exif))
    np.testing.assert_array_equal(read, np.rot90(DEEP, -1))


def test_orientation_can_be_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(COLOUR), exif=exif)
    assert decode_image(data, None, "x", rotate=False).shape == (3, 6, 8)
    assert decode_image(data, None, "x").shape == (3, 8, 6)


BROKEN = {
    "empty": (b"", "the file is empty"),
    "text": (b"no image at all", "no known image format"),
    "cut png": (encode(Image.effect_noise((64, 64), 90))[:600], "broken image"),
    "cut deep png": (deep_png(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 7919, 0)[:600], "broken image"),
    "cut jpeg": (encode(Image.effect_noise((64, 64), 90), "JPEG")[:900], "broken image"),
    "cut tiff": (tiff(DEEP)[:60], "broken image"),
    "float": (encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point pixels"),
    "stack": (tiff(np.stack([GREY, GREY]), photometric="minisblack"), "a stack of 2 pages"),
    "film": (encode(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]), "a stack of 2 pages"),
    "deep colour stack": (tiff(np.stack([np.dstack([DEEP] * 3)] * 2), photometric="rgb"), "a stack of 2 pages"),
    "negative": (encode(Image.fromarray(GREY.astype(np.int32) - 9), "TIFF"), "outside 0..65535"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_named_in_one_line(name: str) -> None:
    data, reason = BROKEN[name]
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data, None, "s3://bucket/a.png")
    assert str(caught.value).startswith("s3://bucket/a.png: ")
    assert "\n" not in str(caught.value)


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 40)
    for data in (encode(Image.fromarray(COLOUR)), tiff(np.dstack([DEEP] * 3), photometric="rgb")):
        with pytest.raises(ImageError, match="8x6 pixels are more than the limit of 40"):
            decode_image(data)


def test_read_image_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(COLOUR)))
    np.testing.assert_array_equal(read_image(str(path)).permute(1, 2, 0).numpy(), COLOUR)
