"""Two hundred odd images: each gets a 4xx with a type, or an answer that is right."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import tifffile
from PIL import Image
from serve_tools import Server, decoded, picture, png

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
