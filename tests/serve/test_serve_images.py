"""Two hundred odd images: each gets a 4xx with a type, or an answer that is right."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin
from serve_tools import Server, decoded, picture, png

from stratum_serve.imaging import Header, ImageLimits, read_header
from stratum_serve.problems import Problem

KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
SIZE = (96, 128)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and has next to no pixels."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def good() -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    """Odd images that are images, with the height and width that a viewer shows."""
    image = Image.fromarray(picture(*SIZE))
    for kind in KINDS:
        yield kind.lower(), encoded(image, kind), SIZE
        yield f"grey-{kind.lower()}", encoded(image.convert("L"), kind), SIZE
    for kind in ("JPEG", "TIFF"):
        yield f"cmyk-{kind.lower()}", encoded(image.convert("CMYK"), kind), SIZE
    for kind in ("PNG", "WEBP", "TIFF"):
        yield f"alpha-{kind.lower()}", encoded(image.convert("RGBA"), kind), SIZE
    yield "palette", encoded(image.convert("P"), "PNG"), SIZE
    yield "one-bit", encoded(image.convert("1"), "PNG"), SIZE
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"rotated-{orientation}", encoded(image, "JPEG", exif=exif), SIZE[::-1] if orientation > 4 else SIZE
    deep = picture(*SIZE)[..., 0].astype(np.uint16) * 257
    yield "png-16", encoded(Image.fromarray(deep), "PNG"), SIZE
    for colours in (deep, np.stack([deep] * 3, axis=-1)):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, colours, photometric="minisblack" if colours.ndim == 2 else "rgb")
        yield f"tiff-16-{colours.ndim}", buffer.getvalue(), SIZE
    yield "one-pixel", png(np.zeros((1, 1, 3), np.uint8)), (1, 1)
    yield "thin", png(np.zeros((1, 300, 3), np.uint8)), (1, 300)


def bad() -> Iterator[tuple[str, bytes]]:
    """What is no image, or none that is taken."""
    image = Image.fromarray(picture(*SIZE))
    whole = {kind: encoded(image, kind) for kind in KINDS}
    for kind, data in whole.items():
        for share in (1, 3, 7, 12, 25, 40, 55, 70, 85):
            yield f"cut-{kind}-{share}", data[: max(1, len(data) * share // 100)]
    for other in (
        b"GIF89a",
        b"%PDF-1.4",
        b"<svg/>",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"RIFF\0\0\0\0WEBP",
        b"\0" * 50,
        b"BM",
        b"II*\0",
        b"MM\0*",
    ):
        yield f"other-{other[:6]!r}", other + b" and more" * 5
    for width, height in ((50_000, 50_000), (0, 10), (10, 0), (0, 0), (2**31 - 1, 2**31 - 1), (90_000, 1), (1, 90_000), (12_000, 12_000)):
        yield f"header-{width}x{height}", png_header(width, height)
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    for kind in ("WEBP", "TIFF", "PNG", "GIF"):
        yield f"animated-{kind}", encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    yield "gif", encoded(image, "GIF")
    yield "ppm", encoded(image, "PPM")
    yield "ico", encoded(image.resize((32, 32)), "ICO")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros(SIZE, np.float32))
    yield "float-tiff", buffer.getvalue()


def broken() -> Iterator[tuple[str, bytes]]:
    """Images with bytes changed somewhere: some can still be read."""
    image = Image.fromarray(picture(*SIZE))
    rng = np.random.default_rng(5)
    for kind in KINDS:
        data = encoded(image, kind)
        for number in range(20):
            changed = bytearray(data)
            for place in rng.integers(0, min(len(data), 400 if number % 2 else len(data)), 4):
                changed[place] = int(rng.integers(0, 256))
            yield f"changed-{kind}-{number}", bytes(changed)


def pages(count: int, bits: int, height: int = 4) -> bytes:
    """A TIFF of so many pages of 4 pixels in width, all with the same strip; Pillow does not know colours of 16 bits."""
    tags = {256: 4, 257: height, 258: bits, 259: 1, 262: 2, 273: 8, 277: 3, 278: height, 279: 4 * height * 3 * bits // 8}
    strip = bytes(tags[279])
    size = 2 + 12 * len(tags) + 4
    parts = [struct.pack("<2sHI", b"II", 42, 8 + len(strip)), strip]
    for number in range(1, count + 1):
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        following = 8 + len(strip) + number * size if number < count else 0
        parts.append(struct.pack("<H", len(tags)) + entries + struct.pack("<I", following))
    return b"".join(parts)


@pytest.mark.parametrize("bits", [8, 16])
def test_no_more_pages_are_looked_for_than_may_be(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    pillow, own = TiffImagePlugin.ImageFileDirectory_v2.load, tifffile.TiffPage.__init__
    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", lambda *given: looked.append(pillow(*given)))
    monkeypatch.setattr(tifffile.TiffPage, "__init__", lambda *given, **more: looked.append(own(*given, **more)))
    for most in (1, 3):
        limits = ImageLimits(pixels=100, side=100, frames=most)
        assert read_header(pages(most, bits), limits) == Header(width=4, height=4)
        for wrong, word in ((pages(5000, bits), "frames"), (pages(5000, bits, height=400), "4x400")):
            looked.clear()
            with pytest.raises(Problem, match=word) as caught:
                read_header(wrong, limits)
            assert caught.value.kind == "too-many-pixels"
            assert len(looked) <= 2 * (most + 1)


def test_only_the_formats_that_are_taken_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    tried: list[str] = []
    known = {name: (factory, lambda prefix, name=name: bool(tried.append(name))) for name, (factory, _) in Image.OPEN.items()}
    monkeypatch.setattr(Image, "OPEN", known)
    with pytest.raises(Problem, match="no known image format"):
        read_header(b"%!PS-Adobe and whatever else", ImageLimits(pixels=100, side=100))
    assert set(tried) == set(KINDS)


CASES = [*good(), *((name, data, None) for name, data in bad()), *((name, data, ()) for name, data in broken())]


def test_there_are_two_hundred() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize(("data", "size"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_odd_images(server: Server, data: bytes, size: tuple[int, int] | tuple[()] | None) -> None:
    answer = server.http.post("/v1/models/slag/segment?format=png", content=data)
    if answer.status_code == 200:
        assert size is not None, "it should have been refused"
        assert not size or decoded(answer.content).shape == size
    else:
        assert not size, answer.text
        assert answer.status_code in (413, 415), answer.text
        assert answer.json()["type"] in ("urn:stratum:problem:not-an-image", "urn:stratum:problem:too-many-pixels")


def test_what_is_alike_is_answered_alike(server: Server) -> None:
    """The same pixels in other clothes get the same mask."""
    plain = picture(*SIZE)

    def mask(data: bytes) -> np.ndarray:
        return decoded(server.http.post("/v1/models/slag/segment?format=png", content=data).content)

    first = mask(png(plain))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    turned = encoded(Image.fromarray(np.rot90(plain).copy()), "PNG", exif=exif)
    deep = io.BytesIO()
    tifffile.imwrite(deep, plain.astype(np.uint16) * 257, photometric="rgb")
    for data in (encoded(Image.fromarray(plain), "BMP"), encoded(Image.fromarray(plain), "TIFF"), turned, deep.getvalue()):
        assert (mask(data) == first).all()
