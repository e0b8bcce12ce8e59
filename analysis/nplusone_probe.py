"""A pytest plugin that watches a service's own tests for N+1 queries, and says where the rows came from.

It is copied into a scratch folder and loaded with `-p nplusone_probe` into the interpreter of the service, which knows
nothing of RuneRogue: only the standard library, pytest, Django and django-zeal are imported. django-zeal tells which
lazy relation was read; this plugin keeps, beside that, from which queryset each row came and at which expression that
queryset was begun, so that whoever repairs it need not guess. No test fails because of it.

Writes JSON to the path in RUNEROGUE_NPLUSONE_REPORT when the tests are over (under pytest-xdist, one file per worker).
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from contextlib import ExitStack
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Any

REPORT = "RUNEROGUE_NPLUSONE_REPORT"
ROOT = os.path.realpath(os.environ.get("RUNEROGUE_NPLUSONE_ROOT", ".")) + os.sep
# At least two rows must each have caused a query: one is not N + 1.
REPEATS = 2
DEEPEST = 60

current: ContextVar[Request | None] = ContextVar("runerogue_nplusone", default=None)
findings: dict[tuple[Any, ...], dict[str, Any]] = {}
state: dict[str, Any] = {"requests": 0, "installed": False, "problem": "", "test": ""}


class Origin:
    """One evaluated queryset: what it fetched, where it was begun and, for related rows, from which row and
    relation.
    """

    __slots__ = ("built", "evaluated", "model", "parent_key", "plain", "relation", "rows")

    def __init__(self, model: Any, rows: int, built: list[Any], evaluated: list[Any]) -> None:
        self.model, self.rows, self.built, self.evaluated = model, rows, built, evaluated
        self.parent_key: str | None = None
        self.relation: str | None = None
        self.plain = True


class Call:
    """One place that reads one relation lazily, with the rows that it did so for."""

    __slots__ = ("count", "field", "frames", "instances", "model", "plain", "source")

    def __init__(self, model: Any, field: str, frames: list[Any]) -> None:
        self.model, self.field, self.frames = model, field, frames
        self.count = 0
        self.instances: set[str | None] = set()
        self.source: dict[str, Any] | None = None
        self.plain = True


class Request:
    """What one request did: its queries, the rows it has and the lazy reads."""

    def __init__(self) -> None:
        self.queries = 0
        self.fetched: dict[str, tuple[Origin, tuple[str, ...]]] = {}
        self.calls: dict[tuple[Any, ...], Call] = {}
        self.last: tuple[Call, str | None] | None = None

    def count(self, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        self.queries += 1
        return execute(sql, params, many, context)

    def source_of(self, key: str | None) -> dict[str, Any] | None:
        """The outermost queryset of several rows that this row hangs on, and the path of relations from there."""
        best = None
        path: tuple[str, ...] = ()
        for _ in range(10):
            known = self.fetched.get(key or "")
            if known is None:
                break
            origin, prefix = known
            path = prefix + path
            if origin.rows > 1:
                best = (origin, path)
            if origin.parent_key is None or origin.relation is None or not origin.plain:
                break
            path = (origin.relation, *path)
            key = origin.parent_key
        if best is None:
            return None
        origin, path = best
        return {
            "model": origin.model._meta.label,
            "path": list(path),
            "rows": origin.rows,
            "built": origin.built,
            "evaluated": origin.evaluated,
        }


def instance_key(instance: Any) -> str:
    return f"{instance._meta.label}:{instance.pk}"


def app_frames() -> list[dict[str, Any]]:
    """The service's own frames of the stack, innermost first, up to the request (or to the module being imported)."""
    from django.db.models import QuerySet
    from django.db.models.manager import BaseManager

    found: list[dict[str, Any]] = []
    frame: Any = sys._getframe(1)
    depth = 0
    while frame is not None and len(found) < DEEPEST and depth < 400:
        depth += 1
        code = frame.f_code
        if code is BOUNDARY:
            break
        name = code.co_filename
        if name.startswith(ROOT) and "site-packages" not in name and f"{os.sep}.venv{os.sep}" not in name:
            line, end_line, column, end_column = frame.f_lineno, None, None, None
            if hasattr(code, "co_positions") and frame.f_lasti >= 0:
                where = next(islice(code.co_positions(), frame.f_lasti // 2, None), None)
                if where is not None and where[0] is not None:
                    line, end_line, column, end_column = where
            self_ = frame.f_locals.get("self") if "self" in code.co_varnames[:1] else None
            found.append(
                {
                    "file": os.path.relpath(name, ROOT).replace(os.sep, "/"),
                    "line": line,
                    "end_line": end_line,
                    "column": column,
                    "end_column": end_column,
                    "function": getattr(code, "co_qualname", code.co_name),
                    "manager": isinstance(self_, (BaseManager, QuerySet)),
                }
            )
        if code.co_name == "<module>":
            break
        frame = frame.f_back
    return found


def relations_of(model: Any) -> dict[str, tuple[str, Any]]:
    """name → (kind, model on the other side), by the name that select_related or prefetch_related takes."""
    found: dict[str, tuple[str, Any]] = {}
    for field in model._meta.get_fields(include_hidden=False):
        if not field.is_relation:
            continue
        other = field.related_model
        if field.auto_created and not field.concrete:
            if field.one_to_one:
                found[field.name] = ("forward", other)  # one row: select_related can join it
            else:
                found[field.get_accessor_name()] = ("many", other)
        elif field.many_to_many or field.one_to_many:
            found[field.name] = ("many", other)
        elif other is None or not hasattr(field, "attname"):
            found[field.name] = ("generic", None)
        else:
            found[field.name] = ("forward", other)
    return found


def kind_of(model: Any, field: str) -> str:
    if field == "get()":
        return "get"
    relation = relations_of(model).get(field)
    return relation[0] if relation else "deferred"


def kinds_along(model: Any, path: list[str]) -> list[str]:
    kinds = []
    for name in path:
        kind, other = relations_of(model).get(name, ("unknown", None))
        kinds.append(kind)
        if other is None:
            break
        model = other
    return kinds


def note_read(self: Any, model: Any, field: str, instance_key: str | None) -> None:
    """Stands in for django-zeal's listener: count instead of raising."""
    request = current.get()
    if request is None:
        return
    from zeal.listeners import _nplusone_context

    source = request.source_of(instance_key)
    if source is None and instance_key in _nplusone_context.get().ignored:
        return  # a row that was fetched on its own; zeal leaves these out too
    frames = app_frames()
    first = frames[0] if frames else {"file": "", "line": 0}
    call = request.calls.setdefault(
        (model._meta.label, field, first["file"], first["line"]), Call(model, field, frames)
    )
    call.count += 1
    call.instances.add(instance_key)
    call.source = call.source or source
    request.last = (call, instance_key)


def note_fetched(request: Request, queryset: Any) -> None:
    from django.db.models import Model
    from zeal.patch import _in_queryset_prefetch

    rows = [row for row in queryset._result_cache or [] if isinstance(row, Model)]
    origin = Origin(queryset.model, len(rows), getattr(queryset, "_runerogue_built", []), app_frames())
    parent = queryset._hints.get("instance")
    if isinstance(parent, Model):
        origin.parent_key = instance_key(parent)
        last = request.last
        reading = last is not None and last[1] == origin.parent_key
        names = [name for name, (_, other) in relations_of(type(parent)).items() if other is queryset.model]
        for field in queryset._known_related_objects:
            names = [field.remote_field.get_accessor_name()] if not field.remote_field.one_to_one else names
        if reading and last is not None and last[0].field in names:
            names = [last[0].field]
        origin.relation = names[0] if len(names) == 1 else None
        if origin.relation and not _in_queryset_prefetch.get():
            origin.plain = is_plain(parent, origin.relation, queryset)
            if reading and last is not None and last[0].field == origin.relation:
                last[0].plain = last[0].plain and origin.plain
    for row in rows:
        remember(request, row, origin, ())


def remember(request: Request, row: Any, origin: Origin, path: tuple[str, ...]) -> None:
    request.fetched[instance_key(row)] = (origin, path)
    if len(path) < 4:
        for name, other in row._state.fields_cache.items():
            # Going back up (the entry's player is the player it was read from) would hide where that row came from.
            if other is not None and hasattr(other, "_state") and instance_key(other) not in request.fetched:
                remember(request, other, origin, (*path, name))


def is_plain(parent: Any, relation: str, queryset: Any) -> bool:
    """Whether `queryset` is `parent.relation.all()` and nothing more, which is what a prefetch can answer."""
    manager = getattr(type(parent), relation, None)
    if manager is None or kind_of(type(parent), relation) != "many":
        return True
    try:
        return str(getattr(parent, relation).all().query) == str(queryset.query)
    except Exception:  # noqa: BLE001 - an odd manager or an empty result set: then nothing is claimed
        return False


def close_request(request: Request, http: Any) -> None:
    state["requests"] += 1
    match = getattr(http, "resolver_match", None)
    route = match.view_name if match else ""
    for call in request.calls.values():
        if call.count < REPEATS or (len(call.instances) < REPEATS and call.field != "get()"):
            continue
        first = call.frames[0] if call.frames else {"file": "", "line": 0}
        key = (route, http.method, call.model._meta.label, call.field, first["file"], first["line"])
        kind = kind_of(call.model, call.field)
        source = call.source
        if source is not None:
            from django.apps import apps

            path = [*source["path"], call.field]
            source = {**source, "path": path, "kinds": kinds_along(apps.get_model(source["model"]), path)}
        new = {
            "model": call.model._meta.label,
            "relation": call.field,
            "relation_kind": kind,
            "route": route,
            "route_template": match.route if match else "",
            "method": http.method,
            "frames": call.frames,
            "view": view_of(match),
            "repeats": call.count,
            "queries_per_request": request.queries,
            "plain": call.plain,
            "source": source,
            "test": state["test"],
        }
        known = findings.get(key)
        if known is None or better(new) > better(known):
            findings[key] = new


def better(found: dict[str, Any]) -> tuple[Any, ...]:
    """The example worth keeping: one whose rows could be followed furthest, then the one that repeats most."""
    source = found["source"]
    return (source is not None, len(source["path"]) if source else 0, found["repeats"], found["queries_per_request"])


def view_of(match: Any) -> dict[str, Any] | None:
    """Where the view itself is written, for generic views whose frames are all in a library."""
    if match is None:
        return None
    view = inspect.unwrap(match.func)
    view = getattr(match.func, "view_class", None) or getattr(match.func, "cls", None) or view
    try:
        name = inspect.getsourcefile(view) or ""
        line = inspect.getsourcelines(view)[1]
    except (TypeError, OSError):
        return None
    if not os.path.realpath(name).startswith(ROOT):
        return None
    file = os.path.relpath(os.path.realpath(name), ROOT).replace(os.sep, "/")
    return {"name": getattr(view, "__qualname__", ""), "file": file, "line": line}


def watched(get_response: Any) -> Any:
    @functools.wraps(get_response)
    def inner(self: Any, http: Any) -> Any:
        from django.db import connections
        from zeal import zeal_context

        request = Request()
        token = current.set(request)
        try:
            with ExitStack() as stack:
                stack.enter_context(zeal_context())
                for connection in connections.all():
                    stack.enter_context(connection.execute_wrapper(request.count))
                return get_response(self, http)
        finally:
            current.reset(token)
            close_request(request, http)

    return inner


BOUNDARY = watched(BaseException).__code__  # the same code object for every wrapped function


def install() -> None:
    """Patch Django once its models are known."""
    from django.apps import apps
    from django.core.handlers.base import BaseHandler
    from django.db.models import query
    from django.db.models.manager import BaseManager

    queryset_class: Any = query.QuerySet
    manager_class: Any = BaseManager
    if state["installed"] or not apps.ready:
        return
    from zeal import patch as patches
    from zeal.constants import initialize_app_registry
    from zeal.listeners import NPlusOneListener

    if not apps.is_installed("zeal"):  # a service that uses it has it patched in already
        initialize_app_registry()
        if not apps.is_installed("django.contrib.contenttypes"):  # these two can't even be imported without it
            patches.patch_generic_foreign_key = lambda: None
            patches.patch_generic_related_manager = lambda: None
        patches.patch()
    NPlusOneListener.notify = note_read

    fetch_all, clone, get_queryset = queryset_class._fetch_all, queryset_class._clone, manager_class.get_queryset

    @functools.wraps(fetch_all)
    def noting_fetch_all(self: Any) -> None:
        fresh = self._result_cache is None
        fetch_all(self)
        request = current.get()
        if fresh and request is not None:
            note_fetched(request, self)

    @functools.wraps(clone)
    def noting_clone(self: Any) -> Any:
        copy = clone(self)
        built = self.__dict__.get("_runerogue_built")
        if built is not None:
            copy._runerogue_built = built
        return copy

    @functools.wraps(get_queryset)
    def noting_get_queryset(self: Any) -> Any:
        queryset = get_queryset(self)
        queryset._runerogue_built = app_frames()
        return queryset

    queryset_class._fetch_all = noting_fetch_all
    queryset_class._clone = noting_clone
    manager_class.get_queryset = noting_get_queryset
    handler_class: Any = BaseHandler
    handler_class.get_response = watched(handler_class.get_response)
    state["installed"] = True


def try_to_install() -> None:
    if state["installed"] or state["problem"]:
        return
    try:
        import django  # noqa: F401
        import zeal  # noqa: F401
    except ImportError as error:
        state["problem"] = f"the interpreter that runs the tests can't import {error.name}"
        return
    install()


# ---- pytest hooks


def pytest_sessionstart(session: Any) -> None:
    try_to_install()


def pytest_collection_modifyitems(items: Any) -> None:
    try_to_install()  # a service whose own conftest calls django.setup() is ready only now


def pytest_runtest_setup(item: Any) -> None:
    state["test"] = item.nodeid


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    path = os.environ.get(REPORT)
    if not path:
        return
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    problem = state["problem"] or ("" if state["installed"] else "Django was never set up while the tests ran")
    report = {
        "problem": problem,
        "requests": state["requests"],
        "tests": getattr(session, "testscollected", 0),
        "exit_status": int(exitstatus),
        "found": list(findings.values()),
    }
    Path(path + (f".{worker}" if worker else "")).write_text(json.dumps(report), encoding="utf-8")
