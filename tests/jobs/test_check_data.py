"""jobs/check_data.py from its command line: report, contact sheet, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from in_process import exit_code
from PIL import Image

from stratum.data.check import summarise
from stratum.data.records import Record
from stratum.data.rle import id_rles

SCRIPT = Path(__file__).parents[2] / "jobs" / "check_data.py"


def data_set(folder: Path, count: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    annotations = [{"id": i, "image_id": i, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]} for i in range(count - 1)]
    annotations.append({"id": 99, "image_id": 0, "category_id": 2, "segmentation": [[20, 1, 90, 1, 90, 9, 20, 9]]})
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(count)]
    categories = [{"id": 1, "name": "rock"}, {"id": 2, "name": "belt"}]
    (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder


def test_a_sound_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, sheet, report = data_set(tmp_path / "d"), tmp_path / "out" / "sheet.png", tmp_path / "out" / "report.json"
    assert exit_code("check_data", "--data", str(data), "--sheet", str(sheet), "--json", str(report), "--classes", "rock+belt=ore") == 0
    printed = capsys.readouterr().out
    assert "3 images" in printed
    assert "24x16" in printed
    assert "0 errors, 1 warnings" in printed
    assert f"{data}/0.png: annotation 99" in printed
    with Image.open(sheet) as image:
        assert image.width > 4 * 100
    content = json.loads(report.read_text())
    assert (content["errors"], content["warnings"]) == (0, 1)
    assert content["train"]["instances"] + content["val"]["instances"] == 4
    assert sum(count for part in ("train", "val") for _, count in content[part]["diameters"]) == 4


def test_every_broken_file_is_named_and_the_exit_code_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_set(tmp_path / "d", 8)
    for i in (1, 3, 5):
        (data / f"{i}.png").write_bytes(b"broken")
    (data / "6.png").unlink()
    assert exit_code("check_data", "--data", str(data), "--sheet", "", "--classes", "rock") == 1
    printed = capsys.readouterr().out
    assert "4 errors, 0 warnings" in printed
    assert "error: broken image (3)" in printed
    assert "error: missing file (1)" in printed
    for i in (1, 3, 5, 6):
        assert f"{data}/{i}.png" in printed
    assert "left out by --classes: belt 1" in printed


def test_a_set_of_which_nothing_is_usable_is_still_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_set(tmp_path / "d")
    for file in data.glob("*.png"):
        file.write_bytes(b"")
    sheet = tmp_path / "sheet.png"
    assert exit_code("check_data", "--data", str(data), "--sheet", str(sheet)) == 1
    assert "error: no images (2)" in capsys.readouterr().out
    assert not sheet.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--data", "{tmp}/none"), "no data at"),
        (("--data", "{tmp}"), "no annotation file under"),
        (("--data", "{tmp}/d", "--classes", "stone"), "known: rock, belt"),
        (("--data", "{tmp}/d", "--sheet", "x.pdf"), "must end in .png"),
        (("--data", "{tmp}/d", "--sheet-images", "0"), "at least 1"),
        (("--data", "{tmp}/bad.json"), "is no COCO"),
        (("--data", "synthetic://moon"), "moon"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: tuple[str, ...],
    message: str,
) -> None:
    data_set(tmp_path / "d")
    if "{tmp}" in argv:
        (tmp_path / "d" / "a.json").unlink()
    (tmp_path / "bad.json").write_text('{"a": 1}') if "{tmp}/bad.json" in argv else None
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert exit_code("check_data", *(word.format(tmp=tmp_path) for word in argv)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert list((tmp_path / "work").iterdir()) == []


def test_as_a_program(tmp_path: Path) -> None:
    data = data_set(tmp_path / "d")
    done = subprocess.run([sys.executable, SCRIPT, "--data", "d"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "check_data.png").exists()
    assert str(data) not in done.stdout.splitlines()[0]


def test_synthetic_scenes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("check_data", "--data", "synthetic://ore?images=2&size=64", "--sheet", "") == 0
    assert "64x64 (1)" in capsys.readouterr().out


def test_histogram_of_diameters() -> None:
    ids = np.zeros((300, 300), dtype=np.uint16)
    ids[0, 0] = 1  # 1.13 pixels
    ids[10:20, 10:20] = 2  # 11.3
    ids[100:290, 100:290] = 3  # 214
    found = tuple(id_rles(ids).values())
    record = Record(uri="x", size=(300, 300), labels=(0, 0, 0), rles=found, crowd=(False, False, True))
    part = summarise([record], ["rock", "other"])
    assert [(name, n) for name, n in part.diameters if n] == [("1-2 px", 1), ("8-16 px", 1), ("128-256 px", 1)]
    assert part.diameters[1:3] == [("2-4 px", 0), ("4-8 px", 0)]
    assert part.classes == [("rock", 3), ("other", 0)]
    assert (part.crowds, part.instances_per_image) == (1, (3, 3.0, 3))
