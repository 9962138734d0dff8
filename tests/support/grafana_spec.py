"""Grafana's published API specification, as a validator of requests and answers.

The specification is Swagger 2.0; it is turned into OpenAPI 3.0 here, as far as Grafana's uses it.
Its known faults are mended: types of contact points with a leading space, `format: duration`.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from openapi_core import OpenAPI
from openapi_core.testing import MockRequest, MockResponse

from support.needs import need_test_data

# What phasewatch calls. Another path is not in the converted specification, so it is refused.
PATHS = (
    "/health",
    "/folders",
    "/folders/{folder_uid}",
    "/folders/{folder_uid}/counts",
    "/datasources",
    "/datasources/uid/{uid}",
    "/dashboards/db",
    "/dashboards/uid/{uid}",
    "/v1/provisioning/alert-rules",
    "/v1/provisioning/alert-rules/{UID}",
    "/annotations",
    "/annotations/{annotation_id}",
)


@cache
def grafana_api() -> OpenAPI:
    """The specification, strict: a key that it does not know is an error."""
    path = need_test_data("grafana", "http-api-11.4.swagger.json")
    swagger = json.loads(path.read_text(encoding="utf-8"))
    return OpenAPI.from_dict(to_openapi3(swagger, PATHS))


def check_request(request: MockRequest) -> None:
    """Raise where a request is not as the specification says."""
    grafana_api().validate_request(request)


def check_answer(request: MockRequest, status: int, body: bytes) -> None:
    """Raise where an answer is not as the specification says."""
    response = MockResponse(body, status_code=status, content_type="application/json")
    grafana_api().validate_response(request, response)


def to_openapi3(swagger: dict[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """The chosen paths of a Swagger 2.0 specification as OpenAPI 3.0."""
    return {
        "openapi": "3.0.3",
        "info": swagger["info"],
        "servers": [{"url": swagger["basePath"]}],
        "paths": {
            path: {
                method: _operation(operation, swagger)
                for method, operation in swagger["paths"][path].items()
            }
            for path in paths
        },
        "components": {
            "schemas": {name: _schema(schema) for name, schema in swagger["definitions"].items()}
        },
    }


def _operation(operation: dict[str, Any], swagger: dict[str, Any]) -> dict[str, Any]:
    given = operation.get("parameters", [])
    found: dict[str, Any] = {
        "parameters": [_parameter(item) for item in given if item["in"] != "body"],
        "responses": {
            status: _response(swagger["responses"].get(_last(answer.get("$ref", "")), answer))
            for status, answer in operation["responses"].items()
        },
    }
    for item in given:
        if item["in"] == "body":
            found["requestBody"] = {
                "required": item.get("required", False),
                "content": {"application/json": {"schema": _schema(item["schema"])}},
            }
    return found


def _parameter(item: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": item["name"],
        "in": item["in"],
        "required": item.get("required", False),
        "schema": _schema(
            {key: item[key] for key in ("type", "items", "enum", "format") if key in item}
        ),
    }
    if item.get("collectionFormat") == "multi":
        found |= {"style": "form", "explode": True}
    return found


def _response(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"description": answer.get("description") or "-"}
    if "schema" in answer:
        found["content"] = {"application/json": {"schema": _schema(answer["schema"])}}
    return found


def _schema(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": f"#/components/schemas/{_last(schema['$ref'])}"}
    found = {
        key: _schema(value)
        for key, value in schema.items()
        if not key.startswith("x-") and (key, value) != ("format", "duration")
    }
    if isinstance(found.get("enum"), list):
        found["enum"] = [v.strip() if isinstance(v, str) else v for v in found["enum"]]
    if isinstance(found.get("properties"), dict) and "allOf" not in found:
        found.setdefault("additionalProperties", False)
    return found


def _last(reference: str) -> str:
    return reference.rsplit("/", 1)[-1]
