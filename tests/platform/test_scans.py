"""Scans are read by windows as they would be whole, and what cannot be is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from numpy.typing import NDArray

from stratum.data import scans
from stratum.data.images import DepthRule, ImageError, read_image
from stratum.data.scans import is_scan, list_scans, open_scan
from stratum.data.windows import Window

HEIGHT, WIDTH = 150, 190
PART = Window(top=37, left=100, height=81, width=90)


def picture(*, deep: bool = False) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16) if deep else rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


KINDS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "tiled": {"tile": (64, 64), "compression": "zlib"},
    "lzw": {"tile": (64, 64), "compression": "lzw"},
    "strips": {"rowsperstrip": 8, "compression": "zlib"},
    "big endian": {"byteorder": ">", "bigtiff": True},
    "planes": {"planarconfig": "separate", "tile": (64, 64)},
}


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_of_a_tiff_is_that_of_the_whole(tmp_path: Path, kind: str, deep: bool) -> None:
    pixels = picture(deep=deep)
    stored = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if kind == "planes" else pixels
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="rgb", **KINDS[kind])
    depth = DepthRule(low=1000, high=60000)
    scaled = np.rint((pixels.astype(np.float64) - 1000).clip(0, 59000) * (255 / 59000)) if deep else pixels
    expected = torch.from_numpy(scaled.astype(np.uint8).transpose(2, 0, 1))
    with open_scan(str(path), depth) as scan:
        assert (scan.height, scan.width) == (HEIGHT, WIDTH)
        assert torch.equal(scan.read(PART), PART.of(expected))
        assert torch.equal(scan.read(Window(top=0, left=0, height=HEIGHT, width=WIDTH)), expected)
    if kind != "big endian":  # Pillow stumbles over the tags of such files
        assert torch.equal(read_image(str(path), depth), expected)


COLOURS = np.random.default_rng(1).integers(0, 65536, (3, 256), dtype=np.uint16)
STORED: dict[str, tuple[int, dict[str, Any]]] = {  # channels, and what a file says of them
    "white is 0": (1, {"photometric": "miniswhite"}),
    "black is 0": (1, {"photometric": "minisblack"}),
    "palette": (1, {"photometric": "palette", "colormap": COLOURS}),
    "JPEG's YCbCr": (3, {"photometric": "ycbcr", "compression": "jpeg"}),
    "JPEG in RGB": (3, {"photometric": "rgb", "compression": "jpeg"}),
    "a fourth channel": (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "alpha": (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "premultiplied": (4, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
    "grey and another": (2, {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unspecified"]}),
    "grey and alpha": (2, {"photometric": "miniswhite", "planarconfig": "contig", "extrasamples": ["unassalpha"]}),
}
EIGHT_BITS = ("palette", "JPEG's YCbCr", "JPEG in RGB")


@pytest.mark.parametrize(("kind", "deep"), [(k, deep) for k in STORED for deep in (False, True) if not deep or k not in EIGHT_BITS])
def test_colours_are_those_of_the_same_file_read_whole(tmp_path: Path, kind: str, deep: bool) -> None:
    channels, options = STORED[kind]
    pixels = np.random.default_rng(0).integers(0, 65536 if deep else 256, (HEIGHT, WIDTH, channels), dtype=np.uint16 if deep else np.uint8)
    pixels = pixels[..., 0] if channels == 1 else pixels
    path = tmp_path / "a.tif"
    for place in ({"tile": (64, 64)}, {"rowsperstrip": 64}):  # the second can be mapped, where it is not compressed
        tifffile.imwrite(path, pixels, **options, **place)  # type: ignore[arg-type]
        with open_scan(str(path)) as scan:
            assert torch.equal(scan.read(PART), PART.of(read_image(str(path))))


def test_what_colours_mean(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    expected = {"white is 0": 255 - grey, "black is 0": grey, "palette": (COLOURS >> 8).T[grey]}
    for kind, colours in expected.items():
        tifffile.imwrite(tmp_path / "a.tif", grey, **STORED[kind][1])
        found = read_image(str(tmp_path / "a.tif")).permute(1, 2, 0).numpy()
        assert np.array_equal(found, colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, -1))
    deep = np.full((20, 20, 4), 60000, np.uint16)
    deep[..., 3] = 30000
    for meaning, value in (("unspecified", 233), ("unassalpha", 245), ("assocalpha", 255)):
        tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", extrasamples=[meaning])
        assert read_image(str(tmp_path / "a.tif")).unique().tolist() == [value]


@pytest.mark.parametrize(("kind", "channels"), [("separated", 4), ("cielab", 3), ("ycbcr", 3)])
def test_colours_of_other_kinds_are_refused(tmp_path: Path, kind: str, channels: int) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((HEIGHT, WIDTH, channels), np.uint8), photometric=kind)
    assert f"colours stored as {kind.upper()} " in refuse(tmp_path, "a.tif")


def test_of_a_pyramid_the_finest_level_is_read(tmp_path: Path) -> None:
    pixels = picture()
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels, subifds=1, tile=(64, 64), photometric="rgb")
        writer.write(pixels[::2, ::2], subfiletype=1, tile=(64, 64), photometric="rgb")
    group = zarr.open_group(tmp_path / "b.zarr", mode="w")
    for level, step in ((0, 1), (1, 2)):
        small = pixels[::step, ::step].transpose(2, 0, 1)[None, :, None]  # time, channel, depth, rows, columns
        group.create_array(str(level), shape=small.shape, chunks=(1, 3, 1, 64, 64), dtype="uint8")[:] = small
    for name in ("a.tif", "b.zarr"):
        with open_scan(str(tmp_path / name)) as scan:
            assert torch.equal(scan.read(PART), PART.of(torch.from_numpy(pixels.transpose(2, 0, 1))))


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 1), (1, HEIGHT, WIDTH)])
def test_grey_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    grey = picture()[..., 0]
    zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=shape, dtype="uint8")[:] = grey.reshape(shape)
    with open_scan(str(tmp_path / "a.zarr")) as scan:
        assert torch.equal(scan.read(PART), PART.of(torch.from_numpy(grey)).expand(3, -1, -1))


def refuse(tmp_path: Path, name: str) -> str:
    with pytest.raises(ImageError) as caught, open_scan(str(tmp_path / name)) as scan:
        scan.read(PART)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / name}: ")
    assert "\n" not in text
    return text


def test_what_cannot_be_read_by_windows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 200, 200), np.uint8), photometric="minisblack", tile=(64, 64))
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((200, 200), np.float32), tile=(64, 64))
    tifffile.imwrite(tmp_path / "turned.tif", np.zeros((200, 200), np.uint8), extratags=[(274, "H", 1, 6, True)])
    tifffile.imwrite(tmp_path / "pieces.tif", picture(), compression="zlib", rowsperstrip=HEIGHT)
    zarr.create_array(tmp_path / "many.zarr", shape=(200, 200, 9), chunks=(64, 64, 9), dtype="uint8")
    zarr.open_group(tmp_path / "empty.zarr", mode="w")
    (tmp_path / "cut.tif").write_bytes(b"II*\0\x08")
    assert "a stack of 3 pages" in refuse(tmp_path, "stack.tif")
    assert "float32 pixels; save it with 8 or 16 bits" in refuse(tmp_path, "float.tif")
    assert "turned by its orientation tag" in refuse(tmp_path, "turned.tif")
    assert "no grey or colour image" in refuse(tmp_path, "many.zarr")
    assert "a zarr group without an array" in refuse(tmp_path, "empty.zarr")
    assert "broken image" in refuse(tmp_path, "cut.tif")
    monkeypatch.setattr(scans, "LARGEST_PIECE", 1000)
    assert "save it in tiles" in refuse(tmp_path, "pieces.tif")


def test_a_damaged_tile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].aspage().dataoffsets
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset : offset + 20] = bytes(20)
    path.write_bytes(data)
    assert "broken image at row 37, column 100: " in refuse(tmp_path, "a.tif")


def test_which_files_are_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture())
    assert not is_scan(str(tmp_path / "a.tif"))
    for data in (b"nothing", b"", (tmp_path / "a.tif").read_bytes()[:5], (tmp_path / "a.tif").read_bytes()[:11]):
        (tmp_path / "broken.tif").write_bytes(data)
        assert not is_scan(str(tmp_path / "broken.tif"))
    assert not is_scan("synthetic://vessels?images=1")
    assert is_scan("/x/a.zarr")
    monkeypatch.setattr(scans, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    assert is_scan(str(tmp_path / "a.tif"))
    assert list_scans(["/x/a.zarr/zarr.json", "/x/a.zarr/c/0/0", "/x/b.png", "/x/d/c.zarr/0/.zarray"]) == ["/x/a.zarr", "/x/d/c.zarr"]
