"""The two stages as two workers say what the two stages in one network say, and patches of many requests share stage 2."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from serve_tools import Server, picture, png

from stratum_models.interface import SemanticPrediction
from stratum_models.package import load_package
from stratum_models.two_stage.model import TwoStage
from stratum_serve.config import Batching
from stratum_serve.engine import Engine, open_package
from stratum_serve.imaging import ImageLimits
from stratum_serve.options import RefineOptions
from stratum_serve.problems import Problem
from stratum_serve.refine import Patches, StageOne, StageTwo, both_here
from stratum_serve.worker import Answer, Task, Worker

LIMITS = ImageLimits(pixels=10**7, side=5000)


@pytest.fixture(scope="module")
def engine(packages: dict[str, Path]) -> Engine:
    return open_package(packages["cells"])


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(Batching())
    yield made
    made.close()


def task(seed: int = 0, **options: object) -> Task:
    chosen = RefineOptions(format="npz", **options)  # type: ignore[arg-type]
    return Task(kind="segment", source=png(picture(96, 128, seed)), options=chosen, seconds=60, limits=LIMITS, largest=10**7)


def labels(answer: Answer) -> np.ndarray:
    import io

    found: np.ndarray = np.load(io.BytesIO(answer.body))["labels"]
    return found


def whole(package: Path, seed: int, **changed: object) -> np.ndarray:
    model = load_package(package).model
    assert isinstance(model, TwoStage)
    model.config = replace(model.config, **changed)  # type: ignore[arg-type]
    (found,) = model.predict([torch.from_numpy(picture(96, 128, seed).copy()).permute(2, 0, 1).float() / 255])
    assert isinstance(found, SemanticPrediction)
    return found.probabilities.argmax(0).numpy()


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({}, {}),
        ({"patches": 3}, {"pick": "count", "count": 3, "cap": None}),
        ({"patches": 0}, {"pick": "count", "count": 0}),
        ({"threshold": 0.9}, {"pick": "threshold", "threshold": 0.9}),
    ],
)
def test_both_workers_say_what_the_network_says(
    engine: Engine, worker: Worker, packages: dict[str, Path], options: dict[str, object], config: dict[str, object]
) -> None:
    answer = asyncio.run(both_here(StageOne(worker, Batching()), StageTwo(worker, Batching()), engine, task(2, **options)))
    assert (labels(answer) != whole(packages["cells"], 2, **config)).mean() < 0.005


def test_the_answer_says_which_patches_were_refined(engine: Engine, worker: Worker) -> None:
    asked = replace(task(1, patches=2), options=RefineOptions(patches=2))
    document = json.loads(asyncio.run(both_here(StageOne(worker, Batching()), StageTwo(worker, Batching()), engine, asked)).body)
    refined = document["refined"]
    assert isinstance(engine.model, TwoStage)
    grid = engine.model.config.grid(96, 128)
    assert (refined["rows"], refined["columns"], refined["patch"]) == (grid.rows, grid.columns, grid.side)
    assert len(set(refined["patches"])) == 2
    assert refined["patches"] == sorted(refined["patches"])


def test_patches_of_many_requests_go_together(engine: Engine, worker: Worker) -> None:
    one, two = StageOne(worker, Batching(images=8)), StageTwo(worker, Batching())
    together = []

    async def refine(patches: Patches, seconds: float) -> Patches:
        refined, count = await two.refine(engine, patches, seconds)
        together.append(count)
        return refined

    async def main() -> list[Answer]:
        return await asyncio.gather(*(one.answer(engine, task(seed, patches=2), refine) for seed in range(6)))

    answers = asyncio.run(main())
    assert max(together) > 1
    alone = [
        asyncio.run(both_here(StageOne(worker, Batching()), StageTwo(worker, Batching()), engine, task(seed, patches=2)))
        for seed in range(6)
    ]
    for some, other in zip(answers, alone, strict=True):
        assert (labels(some) != labels(other)).mean() < 0.002


def test_patches_and_threshold_exclude_each_other(engine: Engine, worker: Worker) -> None:
    with pytest.raises(Problem, match="one of them"):
        asyncio.run(both_here(StageOne(worker, Batching()), StageTwo(worker, Batching()), engine, task(0, patches=1, threshold=0.5)))


def test_what_is_measured_is_the_refined_answer(server: Server, image: bytes) -> None:
    found = server.http.post("/v1/refine/cells/segment?patches=2", content=image).json()
    measured = server.http.post("/v1/refine/cells/measure?patches=2&mm_per_px=0.5", content=image).json()
    assert [one["area_px"] for one in measured["areas"]] == [one["pixels"] for one in found["classes"]]
    unrefined = server.http.post("/v1/refine/cells/measure?patches=0", content=image).json()
    assert [one["area_px"] for one in unrefined["areas"]] != [one["area_px"] for one in measured["areas"]]


@pytest.mark.parametrize("action", ["segment", "measure"])
@pytest.mark.parametrize("query", ["tile=64", "tile=0", "patches=1&threshold=0.5", "score=0.5"])
def test_options_that_two_stages_do_not_have(server: Server, image: bytes, action: str, query: str) -> None:
    answer = server.http.post(f"/v1/refine/cells/{action}?{query}", content=image)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:stratum:problem:bad-option")
    assert query.partition("=")[0] in answer.json()["detail"]
