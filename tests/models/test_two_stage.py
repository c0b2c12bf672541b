"""The two-stage pipeline as a model: what it computes, what it costs, what each stage learns, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stratum_models.catalog import build_model, resolve_config
from stratum_models.interface import IGNORE_INDEX, SemanticPrediction, SemanticTarget
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import Manifest, load_package, save_package
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.model import STEPS, TwoStage
from stratum_models.two_stage.paper import TRAINING
from stratum_models.two_stage.unet import StridedUNetConfig, build_strided_unet


def tiny(classes: int = 2, **options: object) -> TwoStage:
    torch.manual_seed(0)
    model = build_model("two_stage_debug", num_classes=classes, overrides=options)
    assert isinstance(model, TwoStage)
    return model


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def scene(height: int, width: int, classes: int = 2, seed: int = 0) -> tuple[Tensor, SemanticTarget]:
    """Squares that are as bright as their class is high, in noise."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(height, width, dtype=torch.int64)
    for label in range(1, classes):
        top, left = (int(torch.randint(0, max(side // 2, 1), (1,), generator=generator)) for side in (height, width))
        mask[top : top + height // 3, left : left + width // 3] = label
    image = (torch.rand(3, height, width, generator=generator) * 0.2 + mask / classes).clamp(0, 1)
    mask[0, 0] = IGNORE_INDEX
    return image, SemanticTarget(mask=mask)


def probabilities(model: TwoStage | SemanticModel, *images: Tensor) -> list[Tensor]:
    found = []
    for prediction in model.predict(images):
        assert isinstance(prediction, SemanticPrediction)
        found.append(prediction.probabilities)
    return found


def pixelwise(model: TwoStage) -> TwoStage:
    """The pipeline with a second stage that looks at each pixel by itself."""
    network = nn.Conv2d(3 + model.num_classes * model.config.prior, model.num_classes, 1)
    stage2 = SemanticModel(network, model.num_classes, SemanticConfig(), divisor=1)
    stage2.normalize = model.stage2.normalize
    return TwoStage(model.stage1, stage2, model.config).eval()


class TestPrediction:
    @settings(max_examples=25, deadline=None)
    @given(
        sizes=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=3),
        patch=st.integers(8, 48),
        margin=st.integers(0, 8),
        count=st.integers(0, 12),
        scale=st.sampled_from([1.0, 2.0, 3.5]),
        prior=st.booleans(),
        classes=st.integers(2, 3),
    )
    @torch.no_grad()
    def test_is_stage_2_on_the_picked_pixels_and_stage_1_elsewhere(  # type: ignore[no-untyped-def]
        self, sizes, patch: int, margin: int, count: int, scale: float, prior: bool, classes: int
    ) -> None:
        model = pixelwise(tiny(classes, patch=patch, margin=margin, count=count, scale=scale, prior=prior, patch_batch=5))
        images = [noise(*size, seed=i) for i, size in enumerate(sizes)]
        for image, small, found in zip(images, model.coarse(images), probabilities(model, *images), strict=True):
            height, width = image.shape[1:]
            coarse = nn.functional.interpolate(small[None], (height, width), mode="bilinear")[0]
            seen = torch.cat([image, coarse]) if prior else image
            fine = model.stage2.network((seen[None] - model.stage2.normalize.mean) / model.stage2.normalize.std).softmax(1)[0]
            cells = model.pick(coarse).tolist()
            columns = -(-width // patch)
            assert len(set(cells)) == len(cells) == min(count, columns * -(-height // patch))
            picked = torch.tensor([[r // patch * columns + c // patch in cells for c in range(width)] for r in range(height)])
            torch.testing.assert_close(found, torch.where(picked, fine, coarse), atol=1e-5, rtol=1e-5)
            assert torch.equal(found[:, ~picked], coarse[:, ~picked])

    def test_batch_gives_what_single_images_give(self) -> None:
        model = tiny(3).eval()
        images = [noise(70, 90), noise(70, 90, seed=1), noise(70, 90, seed=2)]
        for together, image in zip(probabilities(model, *images), images, strict=True):
            torch.testing.assert_close(together, probabilities(model, image)[0], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("blend", [False, True])
    @pytest.mark.parametrize("options", [{}, {"prior": True}, {"pick": "threshold", "threshold": 0.0}, {"pick": "share", "share": 1.0}])
    def test_sums_to_1_at_any_size(self, options: dict[str, object], blend: bool) -> None:
        model = tiny(3, blend=blend, **options).eval()
        images = [noise(97, 131), noise(5, 3), noise(32, 40)]
        for image, found in zip(images, probabilities(model, *images), strict=True):
            assert found.shape == (3, *image.shape[1:])
            torch.testing.assert_close(found.sum(0), torch.ones(found.shape[1:]), atol=1e-5, rtol=1e-5)

    def test_times_every_step_and_says_the_same(self) -> None:
        model = tiny().eval()
        image = noise(64, 64)
        (found,), seconds = model.predict_timed([image])
        assert isinstance(found, SemanticPrediction)
        assert torch.equal(found.probabilities, probabilities(model, image)[0])
        assert set(seconds) == set(STEPS)
        assert min(seconds.values()) > 0
        ticks = iter(range(100))
        _, counted = model.predict_timed([image], now=lambda: float(next(ticks)))
        assert counted == {step: 2.0 if step == "scale" else 1.0 for step in STEPS}

    def test_fused_channels_last_and_resized(self) -> None:
        model = tiny(stage1="slag_deeplab_debug", stage2="hrnet_debug", prior=True, input_short=64).train()
        image, target = scene(100, 80)
        model.loss([image, image], [target, target])  # moves the statistics of BN
        plain, fast = model.eval(), prepare_for_inference(model)
        assert sum(isinstance(m, nn.BatchNorm2d) for m in fast.modules()) < sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules()) / 4
        (one,), (other,) = plain.predict([image]), fast.predict([image])
        assert isinstance(one, SemanticPrediction)
        assert isinstance(other, SemanticPrediction)
        assert one.probabilities.shape == (2, 100, 80)
        torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-3, rtol=1e-3)

    def test_saved_and_loaded(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        options = {"prior": True, "stage1": "unet_s2_debug:width=4", "image_size": (64, 64)}
        model = tiny(**options).eval()
        model.set_progress(0.1)
        manifest = Manifest(preset="two_stage_debug", overrides=options, classes=("a", "b"), num_classes=2, task="semantic")
        save_package(tmp_path / "package", model, manifest)
        loaded = load_package(tmp_path / "package").model
        assert isinstance(loaded, TwoStage)
        assert not loaded.refines
        for one in (model, loaded):
            one.refines.fill_(True)
        assert torch.equal(*(probabilities(m, noise(50, 70))[0] for m in (model, loaded)))


class TestCost:
    @pytest.mark.parametrize(("count", "patches"), [(0, 0), (1, 1), (5, 5), (99, 12)])
    def test_is_that_of_stage_1_and_of_each_patch(self, count: int, patches: int) -> None:
        model = tiny(count=count, margin=16, patch_batch=2).eval()
        with FlopCounterMode(display=False) as whole:
            model.predict([noise(96, 128)])
        with torch.no_grad(), FlopCounterMode(display=False) as first:
            model.stage1.dense(torch.zeros(1, 3, 64, 64))  # 48x64, padded
        with torch.no_grad(), FlopCounterMode(display=False) as second:
            model.stage2.dense(torch.zeros(1, 3, 64, 64))
        assert whole.get_total_flops() == first.get_total_flops() + patches * second.get_total_flops()

    @pytest.mark.parametrize(("options", "patches"), [({}, 2), ({"pick": "threshold"}, 12), ({"pick": "threshold", "cap": 3}, 3)])
    def test_is_counted_without_values(self, options: dict[str, object], patches: int) -> None:
        with torch.device("meta"):
            model = tiny(**options).eval()
            with FlopCounterMode(display=False) as counter:
                model.predict([torch.empty(3, 96, 128)])
        here = tiny(count=patches).eval()
        with FlopCounterMode(display=False) as reference:
            here.predict([noise(96, 128)])
        assert counter.get_total_flops() == reference.get_total_flops()

    def test_unet_is_the_papers(self) -> None:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            unet = build_strided_unet(StridedUNetConfig(), 2)
            assert unet.dense(torch.empty(1, 3, 768, 768)).shape == (1, 2, 768, 768)
        assert counter.get_total_flops() / 1e9 == pytest.approx(71, abs=0.5)
        channels, sizes = (3, 64, 128, 256, 512, 1024), [768 // 2**i for i in range(6)]
        down = sum(9 * a * b * s**2 for a, b, s in zip(channels[:-1], channels[1:], sizes[1:], strict=True))
        up = sum(9 * a * b * s**2 for a, b, s in zip((1024, 1024, 512, 256, 128), (512, 256, 128, 64, 32), sizes[:0:-1], strict=True))
        assert counter.get_total_flops() == 2 * (down + up + 32 * 2 * 768**2)


class TestTraining:
    def gradients(self, model: TwoStage) -> tuple[bool, bool]:
        """Whether each stage gets one."""
        model.zero_grad()
        images, targets = zip(scene(64, 64), scene(70, 40, seed=1), strict=True)
        losses = model.loss(images, targets)
        assert all(term.shape == () and term.isfinite() for term in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        reached = []
        for name, stage in (("stage1", model.stage1), ("stage2", model.stage2)):
            given = [p.grad is not None and bool(p.grad.any()) for p in stage.parameters()]
            assert any(key.startswith(name) for key in losses) == any(given)
            reached.append(sum(given) > 0.8 * len(given))  # in a network this small, a channel's ReLU may be dead
        return reached[0], reached[1]

    @pytest.mark.parametrize("prior", [False, True])
    def test_reaches_both_stages_in_turn(self, prior: bool) -> None:
        model = tiny(prior=prior).train()
        assert self.gradients(model) == (True, True)
        for fraction, reached in ((0.0, (True, False)), (0.1, (True, False)), (0.2, (False, True)), (1.0, (False, True))):
            model.set_progress(fraction)
            assert self.gradients(model) == reached
        for share, fraction, reached in ((0.0, 0.0, (False, True)), (1.0, 1.0, (True, False))):
            model = tiny(stage1_share=share).train()
            model.set_progress(fraction)
            assert self.gradients(model) == reached

    def test_both_learn_where_stage_1_is_not_frozen_in_bf16_too(self) -> None:
        model = tiny(freeze_stage1=False).train()
        model.set_progress(0.5)
        assert self.gradients(model) == (True, True)
        with torch.autocast("cpu", torch.bfloat16):
            assert self.gradients(model) == (True, True)

    def test_frozen_statistics_stay(self) -> None:
        model = tiny(stage1="hrnet_debug", stage2="hrnet_debug").train()
        for fraction, moves in ((0.0, (True, False)), (0.5, (False, True))):
            model.set_progress(fraction)
            before = [stage.network.state_dict() | {} for stage in (model.stage1, model.stage2)]
            kept = [{k: v.clone() for k, v in state.items()} for state in before]
            self.gradients(model)
            for stage, old, moved in zip((model.stage1, model.stage2), kept, moves, strict=True):
                assert any(not torch.equal(v, old[k]) for k, v in stage.network.state_dict().items()) == moved

    def test_stage_1_alone_predicts_until_stage_2_learns(self) -> None:
        model = tiny().eval()
        image = noise(64, 64)
        model.set_progress(0.0)
        with FlopCounterMode(display=False) as counter:
            (alone,) = probabilities(model, image)
        assert torch.equal(alone, nn.functional.interpolate(model.coarse([image])[0][None], (64, 64), mode="bilinear")[0])
        with torch.no_grad(), FlopCounterMode(display=False) as first:
            model.stage1.dense(torch.zeros(1, 3, 32, 32))
        assert counter.get_total_flops() == first.get_total_flops()
        assert (model.unlearnt, model.predict([image])[0].refined) == ("stage 2", 0)  # type: ignore[union-attr]
        model.set_progress(0.5)
        assert torch.equal(probabilities(model, image)[0], alone)
        model.loss(*zip(scene(64, 64), strict=True))
        assert not torch.equal(probabilities(model, image)[0], alone)
        assert (model.unlearnt, model.predict([image])[0].refined) == ("", 2)  # type: ignore[union-attr]
        model.set_progress(1.0)
        assert model.refines
        model.set_progress(0.1)
        assert not model.refines
        first = tiny(stage1_share=1)
        first.set_progress(1.0)
        assert (bool(first.refines), first.unlearnt) == (False, "")

    def test_patches_of_all_images_are_one_batch_with_their_masks(self) -> None:
        model = tiny(patch=16, margin=4, train_patches=3).train()
        given: list[tuple[list[Tensor], list[SemanticTarget]]] = []
        model.stage2.loss = lambda images, targets: given.append((images, targets)) or {}  # type: ignore[method-assign,assignment,func-returns-value]
        pairs = [scene(64, 50, classes=2), scene(10, 20, classes=2, seed=3)]
        model.loss(*zip(*pairs, strict=True))
        ((patches, targets),) = given
        assert len(patches) == len(targets) == 3 + 2
        for patch, target in zip(patches, targets, strict=True):
            assert patch.shape == (3, 24, 24)
            known = target.mask != IGNORE_INDEX
            assert torch.equal((patch.mean(0) > 0.4)[known], target.mask[known] == 1)
        assert (targets[-1].mask[10:] == IGNORE_INDEX).all()

    def test_learns_both_stages_in_one_run(self) -> None:
        model = tiny(stage1_share=0.5).train()
        pairs = [scene(64, 64, seed=s) for s in range(4)]
        images, targets = zip(*pairs, strict=True)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        history: dict[str, list[float]] = {}
        for step in range(40):
            model.set_progress(step / 40)
            losses = model.loss(images, targets)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            for name, term in losses.items():
                history.setdefault(name, []).append(term.item())
        assert {len(values) for values in history.values()} == {20}
        for name in ("stage1_foreground_dice", "stage2_foreground_dice"):
            assert history[name][-1] < 0.5 * history[name][0]

    def test_default_is_the_papers(self) -> None:
        config = resolve_config("two_stage")
        assert isinstance(config, TwoStageConfig)
        assert config.stage1_share == TRAINING.stage1_epochs / (TRAINING.stage1_epochs + TRAINING.stage2_epochs)
        assert config.loss == "alpha_focal+foreground_dice"
        assert (config.margin, config.blend, config.prior, config.pick) == (0, False, False, "count")
