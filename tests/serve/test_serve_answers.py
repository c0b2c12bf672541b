"""What the routes answer, against predictions of the same packages without a server."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from serve_tools import Server, decoded, picture, png
from skimage.draw import polygon2mask

from stratum_models.interface import InstancePrediction, SemanticPrediction
from stratum_models.package import load_package


def instances(package: Path, pixels: np.ndarray) -> InstancePrediction:
    (found,) = load_package(package).predict([torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255])
    assert isinstance(found, InstancePrediction)
    assert len(found) > 3
    return found


def classes(package: Path, pixels: np.ndarray) -> np.ndarray:
    (found,) = load_package(package).predict([torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255])
    assert isinstance(found, SemanticPrediction)
    return found.probabilities.argmax(0).numpy()


def test_instances_as_run_lengths(server: Server, packages: dict[str, Path], image: bytes) -> None:
    wanted = instances(packages["losnet"], picture())
    answer = server.http.post("/v1/models/losnet/segment", content=image).json()
    assert (answer["task"], answer["height"], answer["width"], answer["model"]["name"]) == ("instance", 96, 128, "losnet")
    found = answer["instances"]
    shown = [index for index in range(len(wanted)) if wanted.masks[index].any()]
    assert len(found) == len(shown)
    for one, index in zip(found, shown, strict=True):
        mask = coco.decode({"size": one["segmentation"]["size"], "counts": one["segmentation"]["counts"].encode()}).astype(bool)
        assert (mask != wanted.masks[index].numpy()).mean() < 0.002  # folding BN moves a pixel of an edge now and then
        assert one["score"] == pytest.approx(float(wanted.scores[index]), abs=1e-3)
        assert one["box"] == pytest.approx(wanted.boxes[index].tolist(), abs=0.2)
        assert one["area"] == int(mask.sum())
    covered = np.any([coco.decode({"size": one["segmentation"]["size"], "counts": one["segmentation"]["counts"]}) for one in found], axis=0)
    assert answer["classes"][0] == {
        "label": "ore",
        "pixels": int(covered.sum()),
        "fraction": covered.mean(),
        "instances": len(found),
    }


def test_polygons_enclose_the_run_lengths(server: Server, image: bytes) -> None:
    lengths = server.http.post("/v1/models/losnet/segment", content=image).json()["instances"]
    rings = server.http.post("/v1/models/losnet/segment?geometry=polygons", content=image).json()["instances"]
    for one, other in zip(lengths, rings, strict=True):
        mask = coco.decode({"size": one["segmentation"]["size"], "counts": one["segmentation"]["counts"]}).astype(bool)
        drawn = np.zeros_like(mask)
        for ring in other["segmentation"]:
            points = np.array(ring).reshape(-1, 2)[:, ::-1] - 0.5
            drawn ^= polygon2mask(mask.shape, points)  # a hole takes away again
        union = (mask | drawn).sum()
        assert (mask & drawn).sum() / union > 0.7 or union < 40


def test_pictures_and_arrays(server: Server, image: bytes) -> None:
    ids = decoded(server.http.post("/v1/models/losnet/segment?format=png", content=image).content)
    listed = server.http.post("/v1/models/losnet/segment", content=image).json()["instances"]
    assert ids.dtype.kind in "ui"
    assert set(np.unique(ids)) <= {0, *(one["id"] for one in listed)}
    overlay = server.http.post("/v1/models/losnet/segment?format=overlay", content=image)
    assert overlay.headers["content-type"] == "image/jpeg"
    assert decoded(overlay.content).shape == (96, 128, 3)
    arrays = np.load(io.BytesIO(server.http.post("/v1/models/losnet/segment?format=npz", content=image).content), allow_pickle=False)
    assert arrays["masks"].shape == (len(listed), 96, 128)
    assert (arrays["ids"] == ids).all()
    assert arrays["classes"].tolist() == ["ore"]


def test_classes_as_a_mask(server: Server, packages: dict[str, Path], image: bytes) -> None:
    wanted = classes(packages["slag"], picture())
    answer = server.http.post("/v1/models/slag/segment", content=image).json()
    mask = decoded(base64.b64decode(answer["mask"]["data"]))
    assert (mask != wanted).mean() < 0.01
    assert [one["label"] for one in answer["classes"]] == ["background", "tube", "slag"]
    assert [one["pixels"] for one in answer["classes"]] == [int((mask == index).sum()) for index in range(3)]
    same = decoded(server.http.post("/v1/models/slag/segment?format=png", content=image).content)
    assert (same == mask).all()
    alone = server.http.post("/v1/models/slag/segment?classes=tube", content=image).json()
    assert [one["label"] for one in alone["classes"]] == ["tube"]
    assert set(np.unique(decoded(base64.b64decode(alone["mask"]["data"])))) <= {1, 255}


def test_windows_and_smaller_images(server: Server, packages: dict[str, Path], image: bytes) -> None:
    whole = decoded(server.http.post("/v1/models/slag/segment?format=png", content=image).content)
    windows = decoded(server.http.post("/v1/models/slag/segment?format=png&tile=64", content=image).content)
    assert windows.shape == whole.shape
    small = decoded(server.http.post("/v1/models/slag/segment?format=png&max_size=64", content=image).content)
    assert small.shape == whole.shape
    half = np.asarray(Image.fromarray(picture()).resize((64, 48), Image.Resampling.BILINEAR))
    assert (small[1::2, 1::2] == classes(packages["slag"], half)).mean() > 0.8  # the same small image, up to resampling
    found = server.http.post("/v1/models/losnet/segment?max_size=64", content=image).json()
    assert (found["height"], found["width"]) == (96, 128)
    assert all(one["segmentation"]["size"] == [96, 128] for one in found["instances"])


def test_scores(server: Server, image: bytes) -> None:
    everything = server.http.post("/v1/models/losnet/segment?score=0", content=image).json()["instances"]
    scores = sorted((one["score"] for one in everything), reverse=True)
    middle = scores[len(scores) // 2]
    fewer = server.http.post(f"/v1/models/losnet/segment?score={middle}", content=image).json()["instances"]
    assert 0 < len(fewer) < len(everything)
    assert all(one["score"] >= middle - 1e-4 for one in fewer)


def test_measurements_agree_with_the_masks(server: Server, image: bytes) -> None:
    found = server.http.post("/v1/models/losnet/segment", content=image).json()["instances"]
    measured = server.http.post("/v1/models/losnet/measure?mm_per_px=0.5", content=image).json()
    assert [one["area_px"] for one in measured["particles"]] == [one["area"] for one in found]
    assert measured["particles"][0]["area_mm2"] == pytest.approx(found[0]["area"] * 0.25)
    assert measured["sizes"]["unit"] == "mm"
    assert measured["sizes"]["count"] == len(found)
    slag = server.http.post("/v1/models/slag/measure", content=image).json()
    assert sum(one["area_px"] for one in slag["areas"]) == 96 * 128
    assert slag["slag"] or slag["note"]


def test_the_body_may_be_a_form(server: Server, image: bytes) -> None:
    plain = server.http.post("/v1/models/losnet/segment", content=image).json()
    form = server.http.post("/v1/models/losnet/segment", files={"image": ("a.png", image, "image/png")}).json()
    assert form["instances"] == plain["instances"]


def test_what_is_served_says_so(server: Server) -> None:
    listed = server.http.get("/v1/models").json()["models"]
    assert [(one["name"], one["ready"], one["pipeline"]) for one in listed] == [
        ("losnet", True, False),
        ("slag", True, False),
        ("cells", True, True),
    ]
    one = server.http.get("/v1/models/losnet").json()
    assert one["metrics"] == {"val/mask_ap50": 0.5}
    assert one["score_threshold"] == 0.02


def test_answers_carry_the_request_and_the_model(server: Server, image: bytes) -> None:
    answer = server.http.post("/v1/models/losnet/segment", content=image, headers={"X-Request-Id": "a-request.1"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "a-request.1"
    assert answer.headers["x-model"] == "losnet"
    assert {part.split(";")[0] for part in answer.headers["server-timing"].split(", ")} == {"decode", "queue", "infer", "post", "encode"}
    odd = server.http.get("/v1/models", headers={"X-Request-Id": "no spaces\tplease"})
    assert odd.headers["x-request-id"] != "no spaces\tplease"


def test_many_at_once_get_what_each_gets_alone(server: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [png(picture(96, 128, seed)) for seed in range(6)] + [png(picture(64, 160, 9)), b"no image", png(picture(96, 128, 10))]

    def ask(data: bytes) -> tuple[int, object]:
        answer = server.http.post("/v1/models/losnet/segment", content=data)
        return answer.status_code, [one["area"] for one in answer.json().get("instances", [])]

    alone = [ask(data) for data in images]
    with ThreadPoolExecutor(len(images)) as pool:
        together = list(pool.map(ask, images))
    assert [status for status, _ in together] == [200] * 7 + [415] + [200]
    assert together == alone
