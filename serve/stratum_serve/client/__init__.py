"""A typed client of the server, blocking and asynchronous; knows httpx and nothing of Ray or PyTorch."""

from stratum_serve.client.answers import Answer, ServerError
from stratum_serve.client.asynchronous import AsyncClient
from stratum_serve.client.blocking import Client

__all__ = ["Answer", "AsyncClient", "Client", "ServerError"]
