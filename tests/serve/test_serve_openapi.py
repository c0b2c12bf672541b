"""The OpenAPI document tells the truth: whatever is sent, no 5xx and no answer that it does not name."""

import shlex

import schemathesis
from running import ROOT
from serve_tools import Server
from truth import check_operations


def test_schemathesis_finds_nothing(server: Server) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.app)
    assert check_operations(schema, server.http, "/", examples=20) == 8


def test_every_route_of_the_api_is_in_it(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/models",
        "/v1/models/{model}",
        "/v1/models/{model}/segment",
        "/v1/models/{model}/measure",
        "/v1/refine/{pipeline}/segment",
        "/v1/refine/{pipeline}/measure",
        "/healthz",
        "/readyz",
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert "422" not in operation["responses"] or "application/problem+json" in operation["responses"]["422"]["content"]


def test_the_first_curl_line_of_the_readme_is_answered(server: Server, image: bytes) -> None:
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("curl "))
    _, option, sent, address = shlex.split(line, comments=True)
    assert (option, sent) == ("--data-binary", "@photo.jpg")
    path = address.removeprefix("localhost:8000")
    form = "application/x-www-form-urlencoded"  # as which curl sends it
    answer = server.http.post(path, content=image, headers={"Content-Type": form})
    assert answer.status_code == 200
    assert answer.json()["instances"]
    documented = server.http.get("/openapi.json").json()["paths"]["/v1/models/{model}/segment"]["post"]["requestBody"]["content"]
    assert form in documented
