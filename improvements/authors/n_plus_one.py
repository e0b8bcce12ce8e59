"""The author "n-plus-one": fetch related rows with the queryset that feeds the loop.

The evidence (analysis.nplusone) says at which expression the queryset was begun while the tests ran, so the change goes
exactly there: `Player.objects.order_by(…)` becomes `Player.objects.select_related("guild").order_by(…)`. Right after
the manager it is before any slice, .values() or evaluation, and every later use of that queryset has it. Where the
stack is all that is known, the functions on it are searched from the inside out for the one queryset of that model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, ParentNodeProvider, PositionProvider

from analysis.nplusone import Frame, NPlusOne, from_evidence
from improvements.authors import CannotWrite, Estimate, Finding, Patch

JOIN, FETCH = "select_related", "prefetch_related"
# Methods that a manager hands on to its queryset: what is called on these before or after ours does not matter.
# fmt: off
QUERYSET_METHODS = frozenset((
    "all", "filter", "exclude", "order_by", "reverse", "distinct", "annotate", "alias", "using", "extra", "none",
    "complex_filter", "only", "defer", "select_for_update", "select_related", "prefetch_related", "get", "first",
    "last", "earliest", "latest", "in_bulk", "iterator", "aiterator", "count", "exists", "aggregate", "contains",
    "explain",
))
# fmt: on
MANAGERS = frozenset({"objects", "_default_manager", "_base_manager"})
# After these a queryset no longer gives model instances, or no longer takes select_related.
NO_INSTANCES = frozenset(["values", "values_list", "dates", "datetimes", "raw", "union", "intersection", "difference"])


class NPlusOneAuthor:
    """Adds select_related and prefetch_related for every N+1 of one route."""

    name = "n-plus-one"
    estimate = Estimate(
        lines=2,
        review_hours=0.25,
        promise="Related rows are then fetched together with the list instead of by one query for each row.",
    )

    def can_write(self, finding: Finding) -> bool:
        return finding.kind == "n-plus-one" and bool(finding.evidence.get("found"))

    def write(self, checkout: Path, evidence: Mapping[str, Any]) -> Patch:
        """`evidence["found"]` holds the N+1s of one route as `NPlusOne.as_evidence()` gives them."""
        found = [from_evidence(one) for one in evidence.get("found", ())]
        if not found:
            raise CannotWrite("the finding names no N+1 query")
        plans, refused = _plan(checkout, found)
        files: dict[str, str] = {}
        changes: list[str] = []
        for plan in plans.values():
            text = files.get(plan.file) or _read(checkout, plan.file)
            try:
                files[plan.file], change = _rewrite(text, plan)
                changes.append(f"{plan.file}:{plan.line}: {change}")
            except CannotWrite as error:
                refused.append(str(error))
        files = {file: text for file, text in files.items() if text != _read(checkout, file)}
        if not files:
            raise CannotWrite("; ".join(dict.fromkeys(refused)) or "there is nothing to change")
        return Patch(
            files=files,
            summary=_summary(found, plans.values()),
            explanation=_explanation(found, changes, refused),
            details={"changes": changes, "not_done": list(dict.fromkeys(refused))},
        )


@dataclass
class _Plan:
    """What to add at one expression. `line` and `column` (characters, from 0) are where its first call begins."""

    file: str
    line: int
    column: int
    end: tuple[int, int] | None
    through_manager: bool  # its first call is a method of the service's own manager
    model: str
    join: list[str] = field(default_factory=list)
    fetch: list[str] = field(default_factory=list)


# An N+1, the key of the plan it went into, and the relations and their kinds from that plan's model.
_Placed = tuple[NPlusOne, tuple[str, int, int], tuple[str, ...], tuple[str, ...]]


def _plan(checkout: Path, found: Sequence[NPlusOne]) -> tuple[dict[tuple[str, int, int], _Plan], list[str]]:
    """Decide for each N+1 where to add what; those that can't be decided come back as reasons."""
    plans: dict[tuple[str, int, int], _Plan] = {}
    refused: list[str] = []
    known: list[_Placed] = []
    # Relations of many rows first: what is read below them hangs on where they end up.
    for one in sorted(found, key=lambda one: one.relation_kind != "many"):
        try:
            _check(one)
            plan, path, kinds = _place(checkout, one, known)
        except CannotWrite as error:
            refused.append(f"{one.model}.{one.relation} ({one.location}): {error}")
            continue
        key = (plan.file, plan.line, plan.column)
        plan = plans.setdefault(key, plan)
        known.append((one, key, path, kinds))
        target = plan.join if all(kind == "forward" for kind in kinds) else plan.fetch
        lookup = "__".join(path)
        if lookup not in target:
            target.append(lookup)
    for plan in plans.values():
        plan.join = _longest(plan.join)
        plan.fetch = _longest(plan.fetch)
    return plans, refused


def _check(one: NPlusOne) -> None:
    match one.relation_kind:
        case "forward" | "many" | "generic":
            pass
        case "get":
            raise CannotWrite("single rows are fetched in a loop with .get(); that needs another query, not a relation")
        case "deferred":
            raise CannotWrite("a deferred field is loaded row by row; look at .only() or .defer()")
        case other:
            raise CannotWrite(f"a relation of the kind {other!r} is not understood")
    if not one.plain:
        raise CannotWrite("the related rows are filtered or ordered anew for each row; a prefetch would not be used")


def _place(
    checkout: Path,
    one: NPlusOne,
    known: Sequence[_Placed],
) -> tuple[_Plan, tuple[str, ...], tuple[str, ...]]:
    source = one.source
    if source is not None:
        path, kinds, model = source.path, source.kinds, source.model
        if any(kind not in ("forward", "many", "generic") for kind in kinds):
            raise CannotWrite(f"the way from {model} over {' → '.join(path)} is not made of relations alone")
        frame = next((frame for frame in source.built if not frame.manager), None)
        if frame is not None:
            through_manager = source.built[0].manager
            if through_manager and source.evaluated and source.evaluated[0].manager:
                raise CannotWrite(f"the rows are already fetched inside a manager ({_at(source.evaluated[0])})")
            placed = _at_frame(checkout, frame, model, through_manager)
            if placed is not None:
                return placed, path, kinds
    else:
        path, kinds, model = (one.relation,), (one.relation_kind,), one.model
        below = _below(checkout, one, known)
        if below is not None:
            (file, line, column), above_path, above_kinds = below
            plan = _Plan(file, line, column, None, False, model)
            return plan, (*above_path, one.relation), (*above_kinds, one.relation_kind)
    return _search(checkout, one, model), path, kinds


def _at_frame(checkout: Path, frame: Frame, model: str, through_manager: bool) -> _Plan | None:
    """The plan for exactly the expression that ran, or None where Python did not tell columns or the file has
    changed.
    """
    if frame.column is None or frame.end_column is None or frame.end_line is None:
        return None
    lines = _read(checkout, frame.file).splitlines()
    if max(frame.line, frame.end_line) > len(lines):
        return None
    # Python counts columns in bytes of UTF-8, LibCST in characters.
    column = len(lines[frame.line - 1].encode()[: frame.column].decode(errors="replace"))
    end_column = len(lines[frame.end_line - 1].encode()[: frame.end_column].decode(errors="replace"))
    plan = _Plan(frame.file, frame.line, column, (frame.end_line, end_column), through_manager, model)
    tree = _Tree(_read(checkout, frame.file), frame.file)
    return plan if tree.call_at(plan) is not None else None


def _search(checkout: Path, one: NPlusOne, model: str) -> _Plan:
    """The one queryset of `model` in the functions on the stack, from the inside out, then in the view itself."""
    name = model.rpartition(".")[2]
    frames = [*one.frames, *([one.view] if one.view else [])]
    for frame in frames:
        tree = _Tree(_read(checkout, frame.file), frame.file)
        scope = tree.scope_at(frame.line)
        calls = [call for call in tree.calls(scope) if _begins_with_manager_of(call, name)]
        if len(calls) > 1:
            places = ", ".join(str(line) for line in sorted(tree.range(call).start.line for call in calls))
            raise CannotWrite(
                f"{frame.function} in {frame.file} has several querysets of {name} (lines {places}); "
                "which one feeds the loop is not certain"
            )
        if calls:
            where = tree.range(calls[0])
            return _Plan(
                frame.file, where.start.line, where.start.column, (where.end.line, where.end.column), False, model
            )
    searched = ", ".join(dict.fromkeys(f"{_at(frame)} {frame.function}" for frame in frames)) or "an unknown place"
    raise CannotWrite(f"no queryset of {name} was found on the way to it ({searched})")


def _below(
    checkout: Path,
    one: NPlusOne,
    known: Sequence[_Placed],
) -> tuple[tuple[str, int, int], tuple[str, ...], tuple[str, ...]] | None:
    """Where the row comes from a loop over `player.inventory.all()` that is itself one of the N+1s: that one's
    place.
    """
    for frame in one.frames[:2]:
        tree = _Tree(_read(checkout, frame.file), frame.file)
        for iterated in tree.iterated_around(frame.line, one.relation):
            for other, key, path, kinds in known:
                if other.relation == iterated and other is not one:
                    return key, path, kinds
    return None


def _longest(lookups: Sequence[str]) -> list[str]:
    """Without those that a longer one fetches on its way."""
    return [one for one in lookups if not any(other.startswith(f"{one}__") for other in lookups)]


def _read(checkout: Path, file: str) -> str:
    path = checkout / PurePosixPath(file)
    root = checkout.resolve()
    if path.is_symlink() or not path.resolve().is_relative_to(root):
        raise CannotWrite(f"{file} is not a file of this repository")
    parts = PurePosixPath(file).parts
    if parts and (parts[-1].startswith("test_") or parts[-1] == "conftest.py" or "tests" in parts[:-1]):
        raise CannotWrite(f"the queryset is in a test, {file}")
    try:
        with path.open(encoding="utf-8", newline="") as source:  # newline="": CRLF files stay CRLF
            return source.read()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotWrite(f"{file} can't be read: {error}") from error


class _Tree:
    """A parsed module with positions and parents."""

    def __init__(self, text: str, file: str) -> None:
        try:
            self.wrapper = MetadataWrapper(cst.parse_module(text))
        except cst.ParserSyntaxError as error:
            raise CannotWrite(f"{file} can't be parsed: {error.message}") from error
        self.module = self.wrapper.module
        self._ranges = self.wrapper.resolve(PositionProvider)
        self._parents = self.wrapper.resolve(ParentNodeProvider)

    def range(self, node: cst.CSTNode) -> CodeRange:
        found = self._ranges[node]
        assert isinstance(found, CodeRange)
        return found

    def calls(self, scope: cst.CSTNode | None = None) -> Iterator[cst.Call]:
        """Every call in `scope` (default: the module)."""
        waiting: list[cst.CSTNode] = [scope or self.module]
        while waiting:
            node = waiting.pop()
            if isinstance(node, cst.Call):
                yield node
            waiting.extend(node.children)

    def scope_at(self, line: int) -> cst.CSTNode:
        """The innermost function around `line`; a class when the line is its head or body outside any method."""
        best: cst.CSTNode = self.module
        waiting: list[cst.CSTNode] = [self.module]
        while waiting:
            node = waiting.pop()
            for child in node.children:
                where = self._ranges.get(child)
                if isinstance(where, CodeRange) and where.start.line <= line <= where.end.line:
                    if isinstance(child, cst.FunctionDef | cst.ClassDef):
                        best = child
                    waiting.append(child)
        return best

    def call_at(self, plan: _Plan) -> cst.Call | None:
        """The first call of the fluent chain that begins there, if it is the one that ran or ours from an earlier
        time.
        """
        starting = [
            call
            for call in self.calls()
            if isinstance(call.func, cst.Attribute)
            and (self.range(call).start.line, self.range(call).start.column) == (plan.line, plan.column)
        ]
        ends = {(self.range(call).end.line, self.range(call).end.column): call for call in starting}
        if plan.end in ends:
            return ends[plan.end]
        if not ends:
            return None
        first = ends[min(ends)]
        # No end is known for what was placed by the loop around it; else only our own earlier change may have moved it.
        return first if plan.end is None or _method(first) in (JOIN, FETCH) else None

    def chain(self, call: cst.Call) -> list[cst.Call]:
        """`call` and the calls made on its result in the same expression, in order."""
        found = [call]
        while True:
            attribute = self._parents[found[-1]]
            outer = self._parents.get(attribute)
            if not (
                isinstance(attribute, cst.Attribute)
                and attribute.value is found[-1]
                and isinstance(outer, cst.Call)
                and outer.func is attribute
            ):
                return found
            found.append(outer)

    def sliced(self, call: cst.Call) -> bool:
        parent = self._parents.get(call)
        return isinstance(parent, cst.Subscript) and parent.value is call

    def iterated_around(self, line: int, relation: str) -> list[str]:
        """For each loop around `line` whose variable's `relation` is read: the relation that it iterates over."""
        found = []
        waiting: list[cst.CSTNode] = [self.scope_at(line)]
        while waiting:
            node = waiting.pop()
            waiting.extend(node.children)
            if not isinstance(node, cst.For | cst.CompFor) or not isinstance(node.target, cst.Name):
                continue
            iterated = node.iter
            if isinstance(iterated, cst.Call) and _method(iterated) == "all" and not iterated.args:
                assert isinstance(iterated.func, cst.Attribute)
                if isinstance(iterated.func.value, cst.Attribute) and self._reads(node, node.target.value, relation):
                    found.append(iterated.func.value.attr.value)
        return found

    def _reads(self, loop: cst.For | cst.CompFor, variable: str, relation: str) -> bool:
        waiting: list[cst.CSTNode] = [loop if isinstance(loop, cst.For) else self._parents[loop]]
        while waiting:
            node = waiting.pop()
            if (
                isinstance(node, cst.Attribute)
                and node.attr.value == relation
                and isinstance(node.value, cst.Name)
                and node.value.value == variable
            ):
                return True
            waiting.extend(node.children)
        return False


def _method(call: cst.Call) -> str:
    return call.func.attr.value if isinstance(call.func, cst.Attribute) else ""


def _begins_with_manager_of(call: cst.Call, model: str) -> bool:
    """Whether `call` is `Model.objects.something(…)`, also `models.Model.objects…`."""
    if not isinstance(call.func, cst.Attribute) or not isinstance(call.func.value, cst.Attribute):
        return False
    manager = call.func.value
    owner = manager.value
    name = owner.attr.value if isinstance(owner, cst.Attribute) else owner.value if isinstance(owner, cst.Name) else ""
    return manager.attr.value in MANAGERS and name == model


def _rewrite(text: str, plan: _Plan) -> tuple[str, str]:
    """The module with the plan carried out, and the change in a few words."""
    tree = _Tree(text, plan.file)
    first = tree.call_at(plan)
    if first is None:
        raise CannotWrite(
            f"{plan.file}:{plan.line}: the queryset is begun inside another call, not by a manager's method"
        )
    chain = tree.chain(first)
    _check_chain(plan, chain)
    replaced: dict[cst.CSTNode, cst.CSTNode] = {}
    quote = _quote(tree.module)
    added: list[str] = []
    new_calls: list[tuple[str, list[str]]] = []
    for method, lookups in ((JOIN, plan.join), (FETCH, plan.fetch)):
        existing = [call for call in chain if _method(call) == method]
        present = [literal for call in existing for literal in _literals(call)]
        missing = [one for one in lookups if not any(had == one or had.startswith(f"{one}__") for had in present)]
        if not missing:
            continue
        added.append(f"{method}({', '.join(repr(one) for one in missing)})")
        if existing:
            _refuse_clearing(plan, existing)
            replaced[existing[-1]] = _with_arguments(existing[-1], missing, quote)
        else:
            new_calls.append((method, missing))
    if not added:
        raise CannotWrite(f"{plan.file}:{plan.line}: the queryset already fetches {', '.join(plan.join + plan.fetch)}")
    rewriter = _Rewriter(replaced, first, new_calls, quote, after=plan.through_manager and _is_custom(first))
    return tree.module.visit(rewriter).code, " and ".join(added)


def _check_chain(plan: _Plan, chain: Sequence[cst.Call]) -> None:
    methods = [_method(call) for call in chain]
    where = f"{plan.file}:{plan.line}"
    for method in methods:
        if method in NO_INSTANCES:
            raise CannotWrite(f"{where}: .{method}() follows, and its rows have no relations to fetch")
    if _is_custom(chain[0]) and not plan.through_manager:
        raise CannotWrite(f"{where}: what .{methods[0]}() returns is not known to be a queryset")
    if plan.join and ("only" in methods or "defer" in methods):
        raise CannotWrite(f"{where}: .only() or .defer() may leave out the column that {JOIN} needs")
    if plan.join and "select_for_update" in methods:
        raise CannotWrite(f"{where}: select_for_update() would lock the joined rows as well")
    for call in chain:
        if plan.fetch and _method(call) in ("iterator", "aiterator") and not call.args:
            raise CannotWrite(f"{where}: .iterator() without chunk_size refuses {FETCH}")


def _is_custom(call: cst.Call) -> bool:
    return _method(call) not in QUERYSET_METHODS | NO_INSTANCES


def _refuse_clearing(plan: _Plan, calls: Sequence[cst.Call]) -> None:
    for call in calls:
        nothing = not call.args and _method(call) == JOIN
        if nothing or any(isinstance(arg.value, cst.Name) and arg.value.value == "None" for arg in call.args):
            raise CannotWrite(
                f"{plan.file}:{plan.line}: .{_method(call)}({'' if nothing else 'None'}) has a meaning of its own here"
            )


def _literals(call: cst.Call) -> list[str]:
    values = [arg.value.evaluated_value for arg in call.args if isinstance(arg.value, cst.SimpleString)]
    return [value for value in values if isinstance(value, str)]


def _quote(module: cst.Module) -> str:
    """The quotation mark this file prefers."""
    counts = {'"': 0, "'": 0}
    waiting: list[cst.CSTNode] = [module]
    while waiting:
        node = waiting.pop()
        if isinstance(node, cst.SimpleString) and node.quote in counts:
            counts[node.quote] += 1
        waiting.extend(node.children)
    return "'" if counts["'"] > counts['"'] else '"'


def _argument(lookup: str, quote: str) -> cst.Arg:
    return cst.Arg(cst.SimpleString(f"{quote}{lookup}{quote}"))


def _arguments(lookups: Sequence[str], quote: str) -> list[cst.Arg]:
    return [
        _argument(one, quote).with_changes(
            comma=cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
            if index < len(lookups) - 1
            else cst.MaybeSentinel.DEFAULT
        )
        for index, one in enumerate(lookups)
    ]


def _with_arguments(call: cst.Call, lookups: Sequence[str], quote: str) -> cst.Call:
    """`call` with more arguments, one a line where they are written one a line."""
    positional = [arg for arg in call.args if arg.keyword is None]
    if not positional:
        return call.with_changes(args=[*_arguments(lookups, quote), *call.args])
    last = positional[-1]
    if isinstance(call.whitespace_before_args, cst.ParenthesizedWhitespace):
        between = cst.Comma(whitespace_after=_without_comments(call.whitespace_before_args))
    else:
        between = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    before_ours = between
    after_last = last.comma
    if (
        isinstance(call.whitespace_before_args, cst.ParenthesizedWhitespace)
        and isinstance(after_last, cst.Comma)
        and isinstance(after_last.whitespace_after, cst.ParenthesizedWhitespace)
    ):
        # A comment behind the last argument stays with it; the way back to the closing bracket moves behind ours.
        whitespace = after_last.whitespace_after
        before_ours = after_last.with_changes(
            whitespace_after=whitespace.with_changes(
                indent=call.whitespace_before_args.indent, last_line=call.whitespace_before_args.last_line
            )
        )
        after_last = after_last.with_changes(whitespace_after=_without_comments(whitespace))
    added = [_argument(one, quote).with_changes(comma=between) for one in lookups]
    added[-1] = added[-1].with_changes(comma=after_last, whitespace_after_arg=last.whitespace_after_arg)
    kept = [*positional[:-1], last.with_changes(comma=before_ours, whitespace_after_arg=cst.SimpleWhitespace(""))]
    return call.with_changes(args=[*kept, *added, *call.args[len(positional) :]])


def _without_comments(whitespace: cst.BaseParenthesizableWhitespace) -> cst.BaseParenthesizableWhitespace:
    if isinstance(whitespace, cst.ParenthesizedWhitespace):
        return whitespace.with_changes(
            first_line=cst.TrailingWhitespace(newline=whitespace.first_line.newline), empty_lines=[]
        )
    return whitespace


class _Rewriter(cst.CSTTransformer):
    """Carries out one plan: replaces existing calls, and puts new ones right after the manager (or its own method)."""

    def __init__(
        self,
        replaced: Mapping[cst.CSTNode, cst.CSTNode],
        first: cst.Call,
        new_calls: Sequence[tuple[str, list[str]]],
        quote: str,
        *,
        after: bool,
    ) -> None:
        self.replaced, self.first, self.new_calls, self.quote, self.after = replaced, first, new_calls, quote, after

    def leave_Call(  # noqa: N802 - LibCST's name
        self, original_node: cst.Call, updated_node: cst.Call
    ) -> cst.BaseExpression:
        replacement = self.replaced.get(original_node)
        if isinstance(replacement, cst.Call):
            updated_node = updated_node.with_changes(args=replacement.args)
        if original_node is not self.first or not self.new_calls:
            return updated_node
        func = updated_node.func
        assert isinstance(func, cst.Attribute)
        receiver: cst.BaseExpression = updated_node if self.after else func.value
        dot = func.dot.with_changes(whitespace_before=_without_comments(func.dot.whitespace_before))
        for method, lookups in self.new_calls:
            receiver = cst.Call(
                func=cst.Attribute(value=receiver, attr=cst.Name(method), dot=dot.deep_clone()),
                args=_arguments(lookups, self.quote),
            )
        if self.after:
            return receiver
        return updated_node.with_changes(func=func.with_changes(value=receiver))


def _at(frame: Frame) -> str:
    return f"{frame.file}:{frame.line}"


def _route(one: NPlusOne) -> str:
    return f"{one.method} {one.route or one.route_template or 'unnamed view'}"


def _summary(found: Sequence[NPlusOne], plans: Any) -> str:
    lookups = [lookup for plan in plans for lookup in (*plan.join, *plan.fetch)]
    names = list(dict.fromkeys(lookup.replace("__", ".") for lookup in lookups))
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    models = " and ".join(dict.fromkeys(plan.model.rpartition(".")[2] for plan in plans))
    return f"{found[0].route or found[0].route_template}: fetch {listed} together with each {models}"


def _explanation(found: Sequence[NPlusOne], changes: Sequence[str], refused: Sequence[str]) -> str:
    lines = []
    for one in found:
        lines.append(
            f"- {_route(one)} read {one.model}.{one.relation} one row at a time at {one.location}: "
            f"{one.repeats} times in one request of {one.queries_per_request} queries in the service's own tests."
        )
    text = "What was found:\n" + "\n".join(lines)
    text += "\n\nWhat was changed:\n" + "\n".join(f"- {change}" for change in changes)
    if refused:
        text += "\n\nWhat was left alone:\n" + "\n".join(f"- {reason}" for reason in dict.fromkeys(refused))
    return text + (
        "\n\nselect_related joins the related row to the same query; prefetch_related fetches all related rows "
        "with one query more. The number of queries no longer grows with the number of rows."
    )
