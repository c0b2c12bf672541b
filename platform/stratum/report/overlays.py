"""Pictures of instances: each stone in a colour and outline of its own, and many such pictures on one sheet.

Shapes: ``N`` instances, ``H`` and ``W`` the size of the image.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from stratum.data.rle import painted

Colour = tuple[int, int, int]

_GOLDEN_RATIO = 0.618033988749895
_SHADES = ((0.85, 1.0), (0.55, 1.0), (1.0, 0.8))  # saturation and value, in turn
_MARGIN = 6  # pixels between the pictures of a sheet
_BACKGROUND: Colour = (250, 250, 250)
_INK: Colour = (40, 40, 40)


def distinct_colours(count: int) -> list[Colour]:
    """RGB colours of which neighbours in the list are far apart: hues step round the circle by the golden ratio."""
    colours = []
    for index in range(count):
        saturation, value = _SHADES[index % len(_SHADES)]
        red, green, blue = colorsys.hsv_to_rgb((0.02 + index * _GOLDEN_RATIO) % 1.0, saturation, value)
        white = max(0.0, 0.45 - (0.3 * red + 0.59 * green + 0.11 * blue))  # dark blue is lost on wet rock, and black text on it
        colours.append((_byte(red, white), _byte(green, white), _byte(blue, white)))
    return colours


def draw_instances(
    image: Tensor,
    masks: Tensor,
    boxes: Tensor | None = None,
    labels: Sequence[str] | None = None,
    scores: Tensor | Sequence[float] | None = None,
    *,
    alpha: float = 0.35,
    colours: Sequence[Colour] | None = None,
) -> Tensor:
    """The image with its instances tinted and outlined; boxes and captions where they are given.

    ``image`` is ``uint8 [3, H, W]``, ``masks`` are bool ``[N, H, W]`` (best first: the first lies on top), ``boxes`` ``[N, 4]`` xyxy in
    pixels, ``labels`` the names and ``scores`` the scores to write. Returns ``uint8 [3, H, W]`` on the CPU.
    """
    drawn: Tensor = image.detach().cpu().clone()
    masks = masks.detach().cpu().bool()
    if not len(masks):
        return drawn
    chosen = list(colours) if colours is not None else distinct_colours(len(masks))
    owners = painted(masks.numpy())
    _tint(drawn, owners, chosen, alpha)
    _tint(drawn, _outlines(owners, width=1 + min(image.shape[-2:]) // 400), chosen, 0.9)
    captions = _captions(len(masks), labels, scores)
    if boxes is None and captions is None:
        return drawn
    drawn = draw_bounding_boxes(
        drawn,
        _upright(boxes) if boxes is not None else _boxes_of(masks),
        labels=captions,
        colors=chosen,
        width=1 if boxes is not None else 0,
        fill_labels=captions is not None,
    )
    return drawn


def contact_sheet(
    images: Sequence[Tensor],
    path: Path | str,
    columns: int = 6,
    captions: Sequence[str] | None = None,
    *,
    cell: int = 256,
    legend: Sequence[tuple[str, Colour]] = (),
) -> Path:
    """Writes the images ``uint8 [3, H, W]``, of any sizes, as one picture of cells at most ``cell`` pixels wide, with a legend above them.

    Returns the path, whose suffix says the format; folders are made. ``ValueError`` where there is nothing to show.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image, got none")
    if columns < 1 or (captions is not None and len(captions) != len(images)):
        raise ValueError(
            f"{len(images)} images need as many captions and at least one column, got {captions and len(captions)} and {columns}"
        )
    pictures = [_fit(to_pil_image(image.detach().cpu()), cell) for image in images]
    columns = min(columns, len(pictures))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    step_x, step_y = width + _MARGIN, height + _MARGIN + (16 if captions is not None else 0)
    rows = -(-len(pictures) // columns)
    key = legend_picture(legend, _MARGIN + columns * step_x)
    sheet = Image.new("RGB", (key.width, key.height + _MARGIN + rows * step_y), _BACKGROUND)
    sheet.paste(key, (0, 0))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, picture in enumerate(pictures):
        left, top = _MARGIN + index % columns * step_x, key.height + _MARGIN + index // columns * step_y
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
        if captions is not None:
            pen.text((left, top + height + 1), _shorten(captions[index], width, pen, font), fill=_INK, font=font)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    return target


def legend_picture(legend: Sequence[tuple[str, Colour]], width: int) -> Image.Image:
    """Names beside squares of their colours, in as many lines of ``width`` pixels as they need; of no height without any."""
    font = ImageFont.load_default(14)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places: list[tuple[int, int]] = []
    left, top = _MARGIN, _MARGIN
    for name, _ in legend:
        needed = 16 + 6 + round(pen.textlength(name, font=font)) + 18
        if left > _MARGIN and left + needed > width:
            left, top = _MARGIN, top + 22
        places.append((left, top))
        left += needed
    picture = Image.new("RGB", (width, top + 22 if legend else 0), _BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for (name, colour), (x, y) in zip(legend, places, strict=True):
        pen.rectangle((x, y, x + 16, y + 16), fill=colour, outline=_INK)
        pen.text((x + 22, y), name, fill=_INK, font=font)
    return picture


def _byte(value: float, white: float) -> int:
    return round(255 * (value * (1 - white) + white))


def _tint(image: Tensor, owners: NDArray[np.uint16], colours: Sequence[Colour], alpha: float) -> None:
    """Mix the pixels of ``uint8 [3, H, W]`` with the colours of the masks that own them, ``[H, W]`` from 1 on."""
    inside = owners > 0
    whose = owners[inside]
    for plane, shades in zip(image.numpy(), np.array([(0, 0, 0), *colours], dtype=np.float32).T, strict=True):
        plane[inside] = plane[inside] * np.float32(1 - alpha) + shades[whose] * np.float32(alpha)


def _outlines(owners: NDArray[np.uint16], width: int) -> NDArray[np.uint16]:
    """The owners of the pixels within ``width`` of the edge of their mask, 0 elsewhere; the edge of the image is not one."""
    side = 2 * width + 1
    inner = (maximum_filter(owners, side, mode="nearest") == owners) & (minimum_filter(owners, side, mode="nearest") == owners)
    return np.where(inner, np.uint16(0), owners)


def _captions(count: int, labels: Sequence[str] | None, scores: Tensor | Sequence[float] | None) -> list[str] | None:
    if labels is None and scores is None:
        return None
    names = [str(label) for label in labels] if labels is not None else [""] * count
    values = [f"{float(score):.2f}" for score in scores] if scores is not None else [""] * count
    return [f"{name} {value}".strip() for name, value in zip(names, values, strict=True)]


def _upright(boxes: Tensor) -> Tensor:
    """Boxes whose second corner is not before the first, as drawing demands."""
    corners = boxes.detach().cpu()
    return torch.cat([corners[:, :2], torch.maximum(corners[:, :2], corners[:, 2:] - 1)], dim=1)  # x1, y1 are exclusive


def _boxes_of(masks: Tensor) -> Tensor:
    boxes = torch.zeros(len(masks), 4)
    filled = masks.flatten(1).any(dim=1)
    if filled.any():
        boxes[filled] = masks_to_boxes(masks[filled])
    return boxes


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    """The picture at the size of a cell, its proportions kept; small ones are enlarged so that the sheet is even."""
    scale = cell / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS)


def _shorten(text: str, width: int, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of the text (of a URI, what tells it apart) as far as it fits."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength("…" + text, font=font) > width:
        text = text[1:]
    return "…" + text
