"""Packages, pictures and servers for the tests of serving."""

import io
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from stratum_models.catalog import build_model
from stratum_models.package import Manifest, save_package
from stratum_serve.app import with_pipelines
from stratum_serve.config import ServeArgs, ServeConfig, load_config
from stratum_serve.http import make_app
from stratum_serve.keys import KeyRing
from stratum_serve.local import LocalBackend
from stratum_serve.service import Service

CLASSES = {
    "losnet_debug": ("ore",),
    "slag_deeplab_debug": ("background", "tube", "slag"),
    "two_stage_debug": ("background", "cell", "wall"),
}


def make_package(folder: Path, preset: str, seed: int = 0, **values: Any) -> Path:
    """A package with random weights."""
    classes = CLASSES[preset]
    torch.manual_seed(seed)
    model = build_model(preset, num_classes=len(classes))
    task = "instance" if preset == "losnet_debug" else "semantic"
    save_package(folder, model, Manifest(preset=preset, classes=classes, num_classes=len(classes), task=task, **values))  # type: ignore[arg-type]
    return folder


def picture(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """Blurred noise ``uint8 [H, W, 3]``."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


class Server:
    """The application with its models in this process."""

    def __init__(self, config: ServeConfig, client: TestClient, service: Service, app: FastAPI) -> None:
        self.config, self.http, self.service, self.app = config, client, service, app

    def wait(self, seconds: float = 60.0) -> None:
        """Until a model answers."""
        end = time.monotonic() + seconds
        while self.http.get("/readyz").status_code != 200:
            assert time.monotonic() < end, self.http.get("/readyz").text
            time.sleep(0.02)


def start_server(stack: ExitStack, backend: Any = None, keys: KeyRing | None = None, **values: Any) -> Server:
    """A server of such a configuration, until the stack is left."""
    config = with_pipelines(load_config(ServeArgs(**values)))
    local = backend or LocalBackend(config)
    service = Service(config, local)
    app = make_app(service, keys or KeyRing(config.keys_file))
    client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
    stack.callback(getattr(local, "close", lambda: None))
    server = Server(config, client, service, app)
    return server


Serving = Callable[..., Server]
