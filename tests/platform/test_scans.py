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
    (tmp_path / "broken.tif").write_bytes(b"nothing")
    assert not is_scan(str(tmp_path / "a.tif"))
    assert not is_scan(str(tmp_path / "broken.tif"))
    assert not is_scan("synthetic://vessels?images=1")
    assert is_scan("/x/a.zarr")
    monkeypatch.setattr(scans, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    assert is_scan(str(tmp_path / "a.tif"))
    assert list_scans(["/x/a.zarr/zarr.json", "/x/a.zarr/c/0/0", "/x/b.png", "/x/d/c.zarr/0/.zarray"]) == ["/x/a.zarr", "/x/d/c.zarr"]
