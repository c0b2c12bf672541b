"""The function of ``speed.py`` behind LitServe: ``litserver.py PORT PACKAGE THREADS``."""

import sys
from pathlib import Path

import litserve as ls
import torch
from fastapi import Request, Response


class Segment(ls.LitAPI):
    """Decode, predict, encode."""

    def setup(self, device: str) -> None:
        """The model, once in the worker process."""
        from stratum_serve.engine import open_package

        torch.set_num_threads(int(sys.argv[3]))
        self.engine = open_package(Path(sys.argv[2]))

    async def decode_request(self, request: Request) -> bytes:
        """The bytes; they are decoded where the model is, as the server does."""
        return await request.body()

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
