"""Whether a server answers as its OpenAPI document says."""

import itertools
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance]


def check_operations(schema: Any, session: Any, under: str, examples: int) -> int:
    """Send generated requests, right ones and wrong ones, to every operation below a path, and say how many operations there are."""
    operations = [one.ok() for one in schema.get_all_operations()]
    operations = [one for one in operations if one.path.startswith(under)]
    for operation, mode in itertools.product(operations, GenerationMode):
        if mode.is_negative and not (list(operation.iter_parameters()) or operation.body):
            continue  # what takes nothing cannot be sent anything wrong

        @settings(max_examples=examples, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(mode))
        def check(case: Any) -> None:
            case.call_and_validate(checks=CHECKS, session=session)

        check()
    return len(operations)
