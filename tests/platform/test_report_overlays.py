import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from stratum.report.overlays import contact_sheet, distinct_colours, draw_instances


def squares(*corners: tuple[int, int, int, int], size: tuple[int, int] = (40, 60)) -> torch.Tensor:
    masks = torch.zeros(len(corners), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def test_only_the_instances_are_painted_and_the_image_is_left_alone() -> None:
    image = torch.full((3, 40, 60), 100, dtype=torch.uint8)
    before = image.clone()
    masks = squares((5, 5, 20, 20), (30, 10, 50, 35))
    drawn = draw_instances(image, masks)
    changed = (drawn != image).any(dim=0)
    assert torch.equal(image, before)
    assert drawn.dtype == torch.uint8
    assert torch.equal(changed, masks.any(dim=0))


def test_the_first_of_two_overlapping_masks_lies_on_top() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    masks = squares((5, 5, 25, 25), (10, 10, 40, 35))
    drawn = draw_instances(image, masks, colours=[(255, 0, 0), (0, 255, 0)])
    assert drawn[0, 15, 15] > 60  # shared: red, neither green nor torchvision's black
    assert drawn[1, 15, 15] == 0
    assert drawn[1, 30, 30] > 60


def test_each_pixel_has_the_colour_of_its_mask_or_of_its_outline() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=generator)
    masks = squares((5, 5, 25, 25), (10, 10, 40, 35), (0, 30, 20, 40), (12, 12, 14, 14))
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    drawn = draw_instances(image, masks, colours=colours)
    first = [next((index for index, mask in enumerate(masks) if mask[y, x]), None) for y in range(40) for x in range(60)]
    owner = np.array([-1 if index is None else index for index in first]).reshape(40, 60)
    for y, x in itertools.product(range(40), range(60)):
        around = owner[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        wanted = image[:, y, x].float()
        for alpha in (0.35, 0.9)[: 0 if owner[y, x] < 0 else 1 + bool((around != owner[y, x]).any())]:
            wanted = (wanted * (1 - alpha) + torch.tensor(colours[owner[y, x]]) * alpha).floor()
        assert (drawn[:, y, x].float() - wanted).abs().max() <= 1, (y, x)


def test_edges_are_stronger_than_insides() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    drawn = draw_instances(image, squares((5, 5, 30, 30)), colours=[(255, 255, 255)])
    assert drawn[0, 5, 15] > 2 * drawn[0, 15, 15] > 0


def test_nothing_to_draw_gives_a_copy() -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    drawn = draw_instances(image, torch.zeros(0, 20, 30, dtype=torch.bool), torch.zeros(0, 4), [], torch.zeros(0))
    assert torch.equal(drawn, image)
    assert drawn is not image


def test_boxes_and_captions_with_degenerate_boxes_and_empty_masks() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    masks = squares((5, 5, 20, 20), (0, 0, 0, 0))
    boxes = torch.tensor([[5.0, 5.0, 20.0, 20.0], [9.0, 9.0, 8.0, 8.0]])
    plain = draw_instances(image, masks)
    assert (draw_instances(image, masks, boxes) != plain).any()
    assert (draw_instances(image, masks, boxes, ["ore", "ore"], torch.tensor([0.9, 0.1])) != plain).any()
    assert (draw_instances(image, masks, labels=["ore", "ore"]) != plain).any()
    with pytest.raises(ValueError):
        draw_instances(image, masks, labels=["ore"], scores=[0.1, 0.2])


def test_colours_are_distinct_and_bright() -> None:
    colours = distinct_colours(60)
    assert len(set(colours)) == 60
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    steps = [sum(abs(a - b) for a, b in zip(one, two, strict=True)) for one, two in itertools.pairwise(colours)]
    assert min(steps) > 100
    assert min(0.3 * r + 0.59 * g + 0.11 * b for r, g, b in colours) > 60


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_contact_sheet_holds_images_of_any_size(tmp_path, suffix: str) -> None:
    images = [torch.full((3, h, w), 10 * (i + 1), dtype=torch.uint8) for i, (h, w) in enumerate([(20, 30), (300, 100), (50, 50), (1, 900)])]
    path = contact_sheet(images, tmp_path / "new" / f"sheet.{suffix}", columns=3, captions=["a", "a long caption " * 9, "", "ö"], cell=64)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[1] == 6 + 3 * (64 + 6)
    assert abs(int(pixels[6 + 32, 6 + 32, 0]) - 10) <= 2  # the middle of the first cell is the first image
    assert path.parent.name == "new"


def test_a_contact_sheet_of_one_image_has_one_column(tmp_path) -> None:
    path = contact_sheet([torch.zeros(3, 30, 30, dtype=torch.uint8)], str(tmp_path / "one.png"), cell=32)
    with Image.open(path) as sheet:
        assert sheet.size == (6 + 38, 6 + 38)


def test_a_contact_sheet_refuses_nothing_and_odd_captions(tmp_path) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([], tmp_path / "x.png")
    with pytest.raises(ValueError, match="captions"):
        contact_sheet([torch.zeros(3, 4, 4, dtype=torch.uint8)], tmp_path / "x.png", captions=["a", "b"])
    assert not (tmp_path / "x.png").exists()
