"""What semantic networks share: every loss term against a slow float64 reference, and images of odd and different sizes."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from stratum_models.batching import InputSize
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX, InstanceTarget, SemanticPrediction, SemanticTarget
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.losses import TERMS, SemanticLoss, hard_pixels, parse_loss
from stratum_models.semantic.model import SemanticModel

Pixel = tuple[list[float], int]  # logits and label of a labelled pixel


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def labelled(logits: Tensor, mask: Tensor) -> list[Pixel]:
    rows = logits.double().movedim(1, -1).reshape(-1, logits.shape[1]).tolist()
    return [(row, label) for row, label in zip(rows, mask.flatten().tolist(), strict=True) if label != IGNORE_INDEX]


def cross_entropy(pixels: list[Pixel], weights: list[float]) -> float:
    """The weighted mean of the negative logarithms of the labels' probabilities."""
    terms = [-weights[label] * math.log(softmax(row)[label]) for row, label in pixels]
    return sum(terms) / sum(weights[label] for _, label in pixels)


def focal(pixels: list[Pixel], weights: list[float]) -> float:
    """Lin et al., gamma 2, each class against the rest by a sigmoid, the mean over pixels and classes."""
    total = 0.0
    for row, label in pixels:
        for index, logit in enumerate(row):
            right = 1 / (1 + math.exp(-logit if index == label else logit))
            total += -((1 - right) ** 2) * math.log(right)
    return total / len(pixels) / len(weights)


def alpha_focal(pixels: list[Pixel], weights: list[float]) -> float:
    """Lin et al., Eq. 5 with alpha 1/4 and gamma 2, the class by a softmax; background is class 0."""
    total = 0.0
    for row, label in pixels:
        right = softmax(row)[label]
        total += -(0.25 if label else 0.75) * (1 - right) ** 2 * math.log(right)
    return total / len(pixels)


def dice(pixels: list[Pixel], weights: list[float]) -> float:
    """One minus the Dice coefficient of each class over the batch; a class without pixels adds nothing to the mean."""
    total = 0.0
    for index in range(len(weights)):
        shares = [softmax(row)[index] for row, _ in pixels]
        hits = [float(label == index) for _, label in pixels]
        if any(hits):
            total += 1 - 2 * sum(s * h for s, h in zip(shares, hits, strict=True)) / (sum(shares) + sum(hits))
    return total / len(weights)


def foreground_dice(pixels: list[Pixel], weights: list[float]) -> float:
    """As ``dice``, without class 0."""
    background = [(softmax(row)[0], float(label == 0)) for row, label in pixels]
    found = 1 - 2 * sum(s * h for s, h in background) / sum(s + h for s, h in background) if any(h for _, h in background) else 0.0
    return (dice(pixels, weights) * len(weights) - found) / (len(weights) - 1)


def jaccard_loss(wrong: list[bool], hits: list[bool]) -> float:
    """Of a set of mispredicted pixels: 1 - |truth without those| / |truth and those|."""
    kept = sum(h and not w for h, w in zip(hits, wrong, strict=True))
    union = sum(h or w for h, w in zip(hits, wrong, strict=True))
    return 1 - kept / union


def lovasz(pixels: list[Pixel], weights: list[float]) -> float:
    """The Lovász extension as the integral of the set function over the levels of the errors, the mean over the classes that appear."""
    terms = []
    for index in range(len(weights)):
        hits = [label == index for _, label in pixels]
        if not any(hits):
            continue
        errors = [abs(float(hit) - softmax(row)[index]) for (row, _), hit in zip(pixels, hits, strict=True)]
        levels = [0.0, *sorted(errors)]
        # the set {error >= level} is the same for all levels between two neighbouring errors
        terms.append(sum((high - low) * jaccard_loss([e >= high for e in errors], hits) for low, high in itertools.pairwise(levels)))
    return sum(terms) / len(terms)


def ohem(pixels: list[Pixel], weights: list[float]) -> float:
    """The mean over the pixels whose class has at most 0.7, or over a sixteenth of them all with the lowest probabilities."""
    ordered = sorted((softmax(row)[label], label) for row, label in pixels)
    hard = sum(probability <= 0.7 for probability, _ in ordered)
    kept = ordered[: max(hard, 1, len(pixels) // 16)]
    return sum(-weights[label] * math.log(probability) for probability, label in kept) / len(kept)


REFERENCES: dict[str, Callable[[list[Pixel], list[float]], float]] = {
    "ce": cross_entropy,
    "focal": focal,
    "alpha_focal": alpha_focal,
    "dice": dice,
    "foreground_dice": foreground_dice,
    "lovasz": lovasz,
    "ohem": ohem,
}


def drawn(seed: int, scale: float, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits ``[2, K, 5, 7]`` in float32, and labels of which a fifth is unknown and the last class may be missing."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, classes - seed % 2, (2, 5, 7), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = IGNORE_INDEX
    return torch.randn(2, classes, 5, 7, generator=generator) * scale, mask


@pytest.mark.parametrize("name", TERMS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.3, 2.0, 6.0]), weighted=st.booleans())
def test_terms_are_what_the_formulas_say(name: str, seed: int, scale: float, weighted: bool) -> None:
    logits, mask = drawn(seed, scale)
    weights = [0.5, 1.0, 3.0] if weighted else []
    found = SemanticLoss(f"{name}:0.25", weights)(logits, mask)
    assert list(found) == [name]
    expected = REFERENCES[name](labelled(logits, mask), weights or [1.0, 1.0, 1.0])
    assert found[name].item() == pytest.approx(0.25 * expected, rel=2e-5, abs=1e-6)


def test_alpha_focal_of_two_classes_is_that_of_a_sigmoid() -> None:
    logits, mask = drawn(3, 2.0, classes=2)
    known = mask != IGNORE_INDEX
    one = (logits[:, 1] - logits[:, 0])[known]
    expected = sigmoid_focal_loss(one, mask[known].float(), alpha=0.25, gamma=2.0, reduction="mean")
    assert SemanticLoss("alpha_focal")(logits, mask)["alpha_focal"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_term_has_a_reference() -> None:
    assert set(REFERENCES) == set(TERMS)


def test_hard_pixels_keep_a_share_of_the_easy() -> None:
    # 64 pixels that are all easy, some less: of these four, a sixteenth, the mean is taken.
    right = torch.linspace(2, 8, 64)
    logits = torch.stack([right, torch.zeros(64)])[None, :, None]
    found = hard_pixels(logits, torch.zeros(1, 1, 64, dtype=torch.int64))
    assert found.item() == pytest.approx(torch.log1p(torch.exp(-right[:4])).mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_unknown_pixels_count_nowhere(name: str) -> None:
    logits, mask = drawn(4, 2.0)
    other = torch.where((mask == IGNORE_INDEX)[:, None], torch.randn(logits.shape) * 50, logits)
    criterion = SemanticLoss(name)
    assert torch.equal(criterion(logits, mask)[name], criterion(other, mask)[name])
    logits.requires_grad_()
    criterion(logits, mask)[name].backward()
    assert logits.grad is not None
    assert not logits.grad.movedim(1, -1)[mask == IGNORE_INDEX].any()
    assert logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_known_is_zero_with_gradient(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 5, 7, dtype=dtype).requires_grad_()
    terms = SemanticLoss("+".join(TERMS), (1, 2, 3))(logits, torch.full((2, 5, 7), IGNORE_INDEX))
    assert list(terms) == list(TERMS)
    assert all(term.item() == 0 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_half_precision_is_summed_in_single() -> None:
    logits, mask = drawn(3, 2.0)
    rounded = logits.bfloat16()
    criterion = SemanticLoss("+".join(TERMS))
    with torch.autocast("cpu", torch.bfloat16):
        found = criterion(rounded, mask)
    expected = criterion(rounded.float(), mask)
    assert all(torch.equal(found[name], expected[name]) for name in TERMS)


def test_classes_without_weight_alone_in_a_batch_are_zero_with_gradient() -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    terms = SemanticLoss("ce+ohem", (0.0, 1.0))(logits, torch.zeros(1, 3, 3, dtype=torch.int64))
    assert [term.item() for term in terms.values()] == [0, 0]
    torch.stack(list(terms.values())).sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ce", {"ce": 1.0}), (" ce + dice:0.5 ", {"ce": 1.0, "dice": 0.5}), ("ohem:2+lovasz:1e-1", {"ohem": 2.0, "lovasz": 0.1})],
)
def test_loss_text(text: str, expected: dict[str, float]) -> None:
    assert parse_loss(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there are ce, focal"),
        ("mse", "there are ce, focal"),
        ("ce+ce", "write terms once"),
        ("ce+", "there are ce, focal"),
        ("ce:0", "weight of ce"),
        ("ce:-1", "weight of ce"),
        ("dice:half", "weight of dice"),
        ("dice:nan", "weight of dice"),
        ("dice:inf", "weight of dice"),
        ("ce:1:2", "weight of ce"),
    ],
)
def test_loss_text_errors(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SemanticConfig(loss=text)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"class_weights": (1.0, -1.0)}, "class_weights"),
        ({"class_weights": (1.0, math.nan)}, "class_weights"),
        ({"class_weights": (0.0, 0.0)}, "class_weights"),
        ({"aux_weight": -0.1}, "aux_weight"),
        ({"aux_weight": math.inf}, "aux_weight"),
        ({"input_short": 31}, "input_short"),
        ({"input_long": 0}, "input_long"),
        ({"input_scale": 0.0}, "input_scale"),
        ({"input_scale": 0.5, "input_short": 64}, "contradict each other"),
    ],
)
def test_options_out_of_range_are_named(values: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        SemanticConfig(**values)  # type: ignore[arg-type]


class Quarter(nn.Module):
    """Logits at stride 4 that see their own 4x4 pixels alone; in training with a second output at stride 8."""

    def __init__(self, classes: int = 3, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 4, stride=4)
        self.auxiliary = auxiliary
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        self.seen.append(tuple(images.shape))
        logits = self.conv(images)
        return (logits, F.avg_pool2d(logits, 2)) if self.auxiliary and self.training else logits


def pair(height: int, width: int, seed: int) -> tuple[Tensor, SemanticTarget]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=generator)
    return image, SemanticTarget(mask=torch.randint(0, 3, (height, width), generator=generator))


def test_odd_sizes_share_a_batch_and_come_back() -> None:
    torch.manual_seed(0)
    network = Quarter()
    model = SemanticModel(network, 3, SemanticConfig(), divisor=16).eval()
    images = [pair(97, 131, 0)[0], pair(64, 80, 1)[0]]
    found = model.predict(images)
    assert network.seen == [(2, 3, 112, 144)]
    for image, prediction in zip(images, found, strict=True):
        assert isinstance(prediction, SemanticPrediction)
        assert prediction.probabilities.shape == (3, *image.shape[1:])
        assert prediction.probabilities.dtype == torch.float32
        assert torch.allclose(prediction.probabilities.sum(0), torch.ones(image.shape[1:]), atol=1e-6)


def test_prediction_is_the_softmax_of_the_upsampled_logits() -> None:
    torch.manual_seed(0)
    model = SemanticModel(Quarter(), 3, SemanticConfig(), divisor=16).eval()
    image, _ = pair(32, 48, 0)
    normal = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    logits = F.interpolate(model.network(normal[None]), size=(32, 48), mode="bilinear", align_corners=False)[0]
    found = model.predict([image])[0]
    assert isinstance(found, SemanticPrediction)
    assert torch.allclose(found.probabilities, logits.softmax(0), atol=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_padding_counts_nowhere(name: str) -> None:
    # The same labelled pixels whether the batch is padded by 13 rows or by 45.
    torch.manual_seed(0)
    losses = []
    image, target = pair(35, 37, 0)
    network = Quarter()
    for divisor in (16, 80):
        model = SemanticModel(network, 3, SemanticConfig(loss=name), divisor=divisor)
        losses.append(model.loss([image], [target])[name].item())
    assert network.seen == [(1, 3, 48, 48), (1, 3, 80, 80)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_cross_entropy_of_different_sizes_is_the_mean_over_all_pixels() -> None:
    torch.manual_seed(0)
    model = SemanticModel(nn.Conv2d(3, 3, 1), 3, SemanticConfig(), divisor=32)
    pairs = [pair(97, 131, 0), pair(64, 80, 1)]
    together = model.loss([p[0] for p in pairs], [p[1] for p in pairs])["ce"].item()
    alone = [model.loss([image], [target])["ce"].item() for image, target in pairs]
    counts = [97 * 131, 64 * 80]
    assert together == pytest.approx(sum(a * c for a, c in zip(alone, counts, strict=True)) / sum(counts), rel=1e-5)


def test_auxiliary_outputs_are_weighed_and_only_in_training() -> None:
    torch.manual_seed(0)
    network = Quarter(auxiliary=True)
    model = SemanticModel(network, 3, SemanticConfig(loss="ce+dice:2", aux_weight=0.3), divisor=16)
    image, target = pair(48, 32, 0)
    model.train()
    terms = model.loss([image], [target])
    assert list(terms) == ["ce", "dice", "aux"]
    small = network(model.normalize([image]).images)[1]
    other = F.interpolate(small, size=(48, 32), mode="bilinear", align_corners=False)
    pixels = labelled(other.detach(), target.mask[None])
    assert terms["aux"].item() == pytest.approx(0.3 * (cross_entropy(pixels, [1.0] * 3) + 2 * dice(pixels, [1.0] * 3)), rel=1e-4)
    assert list(model.eval().loss([image], [target])) == ["ce", "dice"]
    assert model.dense(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    assert model.train().dense(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_prediction_may_shrink_images() -> None:
    network = Quarter()
    model = SemanticModel(network, 3, SemanticConfig(input_short=32, input_long=40), divisor=8).eval()
    found = model.predict([pair(90, 130, 0)[0]])[0]
    assert network.seen == [(1, 3, 32, 40)]  # 28 x 40, padded
    assert isinstance(found, SemanticPrediction)
    assert found.probabilities.shape == (3, 90, 130)
    scaled = SemanticModel(network, 3, SemanticConfig(input_scale=0.5), divisor=8).eval()
    for height, width in ((90, 130), (40, 60)):  # by one factor, however large
        scaled.predict([pair(height, width, 0)[0]])
    assert network.seen[1:] == [(1, 3, 48, 72), (1, 3, 24, 32)]


def test_long_thin_images_stay_small() -> None:
    assert InputSize(input_short=352).scaled(20, 4000) == (7, 1408)
    assert InputSize(input_short=352, input_long=9000).scaled(20, 4000) == (45, 9000)
    for height, width in ((480, 640), (100, 399), (1600, 400), (33, 77)):  # usual ones are scaled by their shorter side
        assert InputSize(input_short=352).scaled(height, width) == (
            round(height * 352 / min(height, width)),
            round(width * 352 / min(height, width)),
        )


def test_weights_and_classes_must_agree() -> None:
    with pytest.raises(UserError, match="2 weights for 3 classes"):
        SemanticModel(Quarter(), 3, SemanticConfig(class_weights=(1, 2)))
    with pytest.raises(UserError, match="at least two classes"):
        SemanticModel(Quarter(), 1, SemanticConfig())


def test_instances_are_no_target() -> None:
    model = SemanticModel(Quarter(), 3, SemanticConfig())
    none = InstanceTarget(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        masks=torch.zeros(0, 32, 32, dtype=torch.bool),
        crowd=torch.zeros(0, dtype=torch.bool),
    )
    with pytest.raises(TypeError, match="InstanceTarget"):
        model.loss([torch.zeros(3, 32, 32)], [none])
