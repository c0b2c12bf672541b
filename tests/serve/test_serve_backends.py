"""Every way to run a network gives the same answers; what is compiled takes minutes and is compared in tests/soak."""

from pathlib import Path

import pytest
import torch
from serve_tools import make_package, picture

from stratum_models.interface import InstancePrediction, SemanticPrediction
from stratum_serve.engine import Engine, open_package

SIZES = ((96, 128), (64, 64), (72, 104))


def images() -> list[torch.Tensor]:
    return [torch.from_numpy(picture(*size, seed).copy()).permute(2, 0, 1) for seed, size in enumerate(SIZES)]


def assert_same_answers(one: Engine, other: Engine) -> None:
    for image in images():
        for found, wanted in zip(other.predict([image, image]), one.predict([image, image]), strict=True):
            if isinstance(wanted, SemanticPrediction):
                assert isinstance(found, SemanticPrediction)
                torch.testing.assert_close(found.probabilities, wanted.probabilities, atol=1e-3, rtol=1e-3)
            else:
                assert isinstance(found, InstancePrediction)
                torch.testing.assert_close(found.scores, wanted.scores, atol=1e-3, rtol=1e-3)
                assert (found.masks != wanted.masks).float().mean() < 1e-3


@pytest.mark.parametrize("name", ["losnet", "slag", "cells"])
def test_onnxruntime(packages: dict[str, Path], name: str) -> None:
    assert_same_answers(open_package(packages[name]), open_package(packages[name], backend="onnxruntime"))


def test_neighbours_change_nothing(tmp_path: Path) -> None:
    engine = open_package(make_package(tmp_path / "losnet", "losnet_debug", seed=5))
    first, second = (torch.from_numpy(picture(96, 128, seed).copy()).permute(2, 0, 1) for seed in (1, 2))
    (alone,), (beside, _) = engine.predict([first]), engine.predict([first, second])
    assert isinstance(alone, InstancePrediction)
    assert isinstance(beside, InstancePrediction)
    torch.testing.assert_close(beside.scores, alone.scores, atol=1e-4, rtol=1e-4)
    assert engine.bucket(first) == engine.bucket(second)
