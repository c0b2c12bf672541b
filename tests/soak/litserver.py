"""The function of ``speed.py`` behind LitServe: ``litserver.py PORT PACKAGE THREADS``."""

import sys
from pathlib import Path
from typing import Annotated

import litserve as ls
import torch
from fastapi import Body, Response

Picture = Annotated[bytes, Body(media_type="image/jpeg")]


class Segment(ls.LitAPI):
    """Decode, predict, encode."""

    def setup(self, device: str) -> None:
        """The model, once in the worker process."""
        from stratum_serve.engine import open_package

        torch.set_num_threads(int(sys.argv[3]))
        self.engine = open_package(Path(sys.argv[2]))

    def decode_request(self, request: Picture) -> bytes:
        """The bytes; they are decoded where the model is, as the server does."""
        return request

    def predict(self, x: bytes) -> bytes:
        """All steps."""
        from speed import answer

        return answer(self.engine, x)

    def encode_response(self, output: bytes) -> Response:
        """The JSON as it is."""
        return Response(content=output, media_type="application/json")


if __name__ == "__main__":
    server = ls.LitServer(Segment(), accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", log_level="error", generate_client_file=False)
