"""The body of a request: an image, a form with one, or JSON that names one on S3."""

from fastapi import Request
from pydantic import ValidationError
from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from stratum_serve.problems import Problem
from stratum_serve.schema import S3Image
from stratum_serve.service import Order

FORM, JSON = "multipart/form-data", "application/json"


async def read_order(request: Request) -> Order:
    """What is asked for. Raises Problem where the body cannot be used."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    request_id, deadline = str(request.state.request_id), float(request.state.deadline)
    if kind == JSON:
        body = _s3_image(await request.body())
        return Order(request_id=request_id, deadline=deadline, image=body.image, output=body.output or "")
    data = await _uploaded(request) if kind == FORM else await request.body()
    if not data:
        raise Problem("not-an-image", "the body is empty: send the bytes of an image, a form with one, or JSON with s3://bucket/key")
    return Order(request_id=request_id, deadline=deadline, data=data)


async def _uploaded(request: Request) -> bytes:
    """The first file of a form."""
    try:
        form = await request.form(max_files=1, max_fields=10)
    except (HTTPException, MultipartParseError, KeyError) as error:
        raise Problem("bad-request", f"the form cannot be read ({getattr(error, 'detail', error)}): send one file") from error
    try:
        for value in form.values():
            if isinstance(value, UploadFile):
                return await value.read()
    finally:
        await form.close()
    raise Problem("bad-request", "the form has no file: send the image as a file, as curl -F image=@photo.jpg does")


def _s3_image(data: bytes) -> S3Image:
    try:
        body = S3Image.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Problem("bad-request", f'{place or "the body"}: {first["msg"]}: write {{"image": "s3://bucket/key"}}') from error
    if not body.image:
        raise Problem("bad-request", 'image: is empty: write {"image": "s3://bucket/key"}')
    return body
