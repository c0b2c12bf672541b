"""The routes, as a FastAPI application that knows no Ray."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from stratum_serve.bodies import read_order
from stratum_serve.directory import Target
from stratum_serve.documents import COMMON, KEYS, document, image_body, measured, problems, segmented
from stratum_serve.gate import Gate
from stratum_serve.keys import KeyRing
from stratum_serve.meters import server_timing
from stratum_serve.names import parse_reference
from stratum_serve.options import MeasureOptions, RefineMeasureOptions, RefineOptions, SegmentOptions
from stratum_serve.problems import MEDIA_TYPE, Problem
from stratum_serve.schema import Health, ModelDetails, ModelList, ModelSummary
from stratum_serve.service import Service
from stratum_serve.worker import Answer

PAGE = FilePath(__file__).parent / "page"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
Model = Annotated[str, Path(description="name, name@alias or name@3", max_length=201)]


def make_app(service: Service, keys: KeyRing, *routers: APIRouter, behind_proxy: bool = False) -> FastAPI:
    """The application; ``routers`` add further routes under ``/v1``; for ``behind_proxy`` see :class:`stratum_serve.gate.Gate`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="Stratum",
        version=version("stratum-segmentation"),
        description="Masks and measurements of images.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    secured = [] if keys.open else [Depends(HTTPBearer(auto_error=False, description="An API key."))]
    for router in (_models(service), *routers):
        app.include_router(router, prefix="/v1", dependencies=secured)
    app.include_router(_health(service))
    if service.config.page:
        _add_page(app)
    _handle_errors(app)
    app.openapi = document(app)  # type: ignore[method-assign]
    limits, meters, door = service.config.limits, service.meters, service.door
    app.add_middleware(Gate, keys=keys, limits=limits, meters=meters, door=door, behind_proxy=behind_proxy)
    return app


def _models(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/models", responses=problems(*COMMON, *KEYS))
    async def list_models() -> ModelList:
        """All models that are served."""
        return ModelList(models=[ModelSummary(**_summary(service, name)) for name in service.directory.models])

    @router.get("/models/{model}", responses=problems(*COMMON, *KEYS, "unknown-model", "unavailable"))
    async def show_model(model: Model) -> ModelDetails:
        """One model: classes, metrics, cost, version, aliases."""
        reference = parse_reference(model)
        target = await service.directory.resolve(reference)
        note = "" if reference.which else service.directory.live(reference.name)[1]
        return ModelDetails(**_described(target, note, service.config.pipelines), **_figures(target))

    @router.post("/models/{model}/segment", response_class=Response, responses=segmented(), openapi_extra=image_body())
    async def segment(model: Model, options: Annotated[SegmentOptions, Query()], request: Request) -> Response:
        """Find what is in an image."""
        order = await read_order(request)
        return _response(request, *await service.answer(model, order, options, "segment"))

    @router.post("/models/{model}/measure", response_class=Response, responses=measured(), openapi_extra=image_body())
    async def measure(model: Model, options: Annotated[MeasureOptions, Query()], request: Request) -> Response:
        """Measure what is in an image: particle sizes, areas of classes, the height of slag."""
        order = await read_order(request)
        return _response(request, *await service.answer(model, order, options, "measure"))

    @router.post("/refine/{pipeline}/segment", response_class=Response, responses=segmented(), openapi_extra=image_body())
    async def refine(pipeline: Model, options: Annotated[RefineOptions, Query()], request: Request) -> Response:
        """Find what is in an image in two stages: small first, then the patches that are least sure at full resolution."""
        order = await read_order(request)
        return _response(request, *await service.answer(pipeline, order, options, "segment", refine=True))

    @router.post("/refine/{pipeline}/measure", response_class=Response, responses=measured(), openapi_extra=image_body())
    async def measure_refined(pipeline: Model, options: Annotated[RefineMeasureOptions, Query()], request: Request) -> Response:
        """Measure what two stages find in an image."""
        order = await read_order(request)
        return _response(request, *await service.answer(pipeline, order, options, "measure", refine=True))

    return router


def _health(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz", responses=problems("method-not-allowed"))
    async def alive() -> Health:
        """Whether the server is there."""
        return Health(status="ok")

    @router.get("/readyz", responses=problems("method-not-allowed", "not-ready"))
    async def ready() -> Health:
        """Whether a model answers, and goes on answering."""
        if service.door.closing:
            raise Problem("stopping", "this server is about to stop", 2)
        if not service.directory.ready:
            notes = {name: service.directory.live(name)[1] or "is being loaded" for name in service.directory.models}
            raise Problem("not-ready", "; ".join(f"{name}: {note}" for name, note in notes.items()), 2)
        return Health(status="ready")

    return router


def _add_page(app: FastAPI) -> None:
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})


def _response(request: Request, answer: Answer, target: Target) -> Response:
    request.state.model = target.name
    headers = {"Server-Timing": server_timing(answer.timings), "X-Model": target.name, "X-Model-Version": target.version}
    return Response(content=answer.body, media_type=answer.media_type, headers=headers)


def _summary(service: Service, name: str) -> dict[str, Any]:
    target, note = service.directory.live(name)
    if target is not None:
        return _described(target, note, service.config.pipelines)
    unknown = {"version": "", "aliases": [], "task": "", "classes": [], "pipeline": False}
    return {"name": name, "ready": False, "note": note or "is being loaded", **unknown}


def _described(target: Target, note: str, pipelines: Collection[str]) -> dict[str, Any]:
    return {
        "name": target.name,
        "ready": True,
        "version": target.version,
        "aliases": list(target.aliases),
        "task": target.manifest.task,
        "classes": list(target.manifest.classes),
        "pipeline": target.pipeline and target.name in pipelines,
        "note": note,
    }


def _figures(target: Target) -> dict[str, Any]:
    manifest = target.manifest
    return {
        "preset": manifest.preset,
        "metrics": dict(manifest.metrics),
        "cost": dict(manifest.cost),
        "score_threshold": manifest.score_threshold,
        "tile": manifest.tile,
        "weights_sha256": manifest.weights_sha256,
        "data_fingerprint": manifest.data_fingerprint,
    }


def _handle_errors(app: FastAPI) -> None:
    """Everything that can go wrong in a route, as a problem."""

    @app.exception_handler(Problem)
    async def of_problem(request: Request, problem: Problem) -> JSONResponse:
        return _refusal(request, problem)

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = str(first["loc"][-1]) if first["loc"] else "request"
        return _refusal(request, Problem("bad-option", f"{place}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def of_framework(request: Request, error: HTTPException) -> JSONResponse:
        kind = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "bad-request")
        known = {
            "not-found": f"nothing at {request.url.path}: see /openapi.json",
            "method-not-allowed": f"{request.method} is not allowed here",
        }
        answer = _refusal(request, Problem(kind, known.get(kind, str(error.detail))))
        answer.headers.update(error.headers or {})
        return answer


def _refusal(request: Request, problem: Problem) -> JSONResponse:
    return JSONResponse(
        problem.document(request.state.request_id), status_code=problem.status, headers=problem.headers(), media_type=MEDIA_TYPE
    )
