"""The OpenAPI document: what REST framework's views say of themselves, and the plain JSON views beside them.

A plain view is documented where it is written: `@described("What it tells", TheShape)`, a pydantic model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from pydantic import BaseModel, ConfigDict

Anything = TypeVar("Anything", bound=Callable[..., Any])
REFERENCE = "#/components/schemas/{model}"
BEARER = "token"
ONCE = {
    "in": "header",
    "name": "Idempotency-Key",
    "description": "The same request with the same key is done once, and answered alike for a day.",
    "schema": {"type": "string", "maxLength": 200},
}


class Shape(BaseModel):
    """An object of an answer: exactly these members."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """An error as RFC 9457 has it; more members say more about some errors."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str


@dataclass(frozen=True)
class Parameter:
    """One `?name=`. `schema` is JSON Schema."""

    name: str
    what: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True)
class Operation:
    """One method of a plain view. `answer` is None where the answer is text; `takes` is the shape of the body."""

    method: str
    summary: str
    answer: type[BaseModel] | None
    parameters: tuple[Parameter, ...] = ()
    takes: type[BaseModel] | None = None
    problems: tuple[int, ...] = ()
    status: int = 200
    is_open: bool = False


def described(
    summary: str,
    answer: type[BaseModel] | None,
    *,
    method: str = "GET",
    parameters: Sequence[Parameter] = (),
    takes: type[BaseModel] | None = None,
    problems: Sequence[int] = (),
    status: int = 200,
    is_open: bool = False,
) -> Callable[[Anything], Anything]:
    """Puts a plain view into the document; once for each method that it answers."""
    operation = Operation(method, summary, answer, tuple(parameters), takes, tuple(problems), status, is_open)

    def mark(view: Anything) -> Anything:
        view.described = (*getattr(view, "described", ()), operation)  # type: ignore[attr-defined]
        return view

    return mark


def plain_operations() -> Iterator[tuple[str, str, Operation]]:
    """(path, name of the route, operation) of every view that is described."""

    def walk(patterns: Sequence[URLPattern | URLResolver], prefix: str) -> Iterator[tuple[str, str, Operation]]:
        for pattern in patterns:
            path = prefix + str(pattern.pattern).lstrip("^")
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            else:
                for operation in getattr(pattern.callback, "described", ()):
                    yield "/" + path, pattern.name or path, operation

    yield from walk(get_resolver().url_patterns, "")


def add_plain_views(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """drf-spectacular's hook: the plain views join the document, and every operation says how its errors look."""
    schemas = result.setdefault("components", {}).setdefault("schemas", {})
    _add_shape(Problem, schemas)
    for path, name, operation in plain_operations():
        result["paths"].setdefault(path, {})[operation.method.lower()] = _operation(name, operation, schemas)
    for path, operations in result["paths"].items():
        for method, operation in operations.items():
            operation["responses"].setdefault("default", _problem("An error"))
            if path.startswith("/api/v1/") and method != "get":
                operation.setdefault("parameters", []).append(ONCE)
    result["paths"] = dict(sorted(result["paths"].items()))
    result["components"]["schemas"] = dict(sorted(schemas.items()))
    return result


def _operation(name: str, operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    content = (
        {"text/plain": {"schema": {"type": "string"}}}
        if operation.answer is None
        else {"application/json": {"schema": _add_shape(operation.answer, schemas)}}
    )
    told: dict[str, Any] = {
        "operationId": f"{name.replace('-', '_')}_{operation.method.lower()}",
        "summary": operation.summary,
        "tags": ["monitoring"],
        "parameters": [
            {"in": "query", "name": p.name, "description": p.what, "schema": dict(p.schema)}
            for p in operation.parameters
        ],
        "responses": {
            str(operation.status): {"description": "As asked", "content": content},
            **{str(status): _problem("An error") for status in operation.problems},
        },
        "security": [{}] if operation.is_open else [{BEARER: []}, {"cookieAuth": []}, {}],
    }
    if operation.takes is not None:
        body = {"application/json": {"schema": _add_shape(operation.takes, schemas)}}
        told["requestBody"] = {"required": True, "content": body}
    return told


def _add_shape(shape: type[BaseModel], schemas: dict[str, Any]) -> dict[str, str]:
    """Put `shape` and what it is made of among the schemas; a reference to it."""
    schema = shape.model_json_schema(ref_template=REFERENCE)
    schemas.update(schema.pop("$defs", {}))
    schemas[shape.__name__] = schema
    return {"$ref": REFERENCE.format(model=shape.__name__)}


def _problem(description: str) -> dict[str, Any]:
    reference = {"$ref": REFERENCE.format(model=Problem.__name__)}
    return {"description": description, "content": {"application/problem+json": {"schema": reference}}}


class TokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "approvals.rest.TokenAuthentication"
    name = BEARER

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "An API token: rr_…, made in the admin."}
