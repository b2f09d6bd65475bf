"""Finds offsets in Triton kernels that may overflow 32 bits, by following values through the kernels' source.

Each value has a size: small (numbers, constexprs, `tl.arange`: bounded at compile time), a width (one argument), or
large (program ids, loaded tokens, loops over them, and arguments that are compared with a 64-bit value, because these
count rows).
A product is unsafe if no factor has 64 bits (`.to(tl.int64)`, `tl.cast(…, tl.int64)`, an argument annotated
`tl.int64`) and one factor is large or two are widths. It is reported only if it reaches the address or the mask of a
load, a store or an atomic.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

_MODULES = ("tl", "triton.language", "tl.math", "tl.extra.libdevice", "triton")
_WIDE = ("tl.int64", "tl.uint64")
_ADDRESSED = ("load", "store", "atomic_add", "atomic_max", "atomic_min", "atomic_cas", "atomic_xchg")


_SMALL, _WIDTH, _LARGE = range(3)


@dataclass(frozen=True)
class Value:
    """What is known about an expression.

    Args:
        wide: whether it has 64 bits.
        size: _SMALL, _WIDTH or _LARGE.
        products: the unsafe products that it was computed from, as (line, source).
        tiles: the value is at most cdiv(n, `tiles`), so its product with that expression is at most about n.
        argument: the kernel argument that it is.
    """

    wide: bool = False
    size: int = _SMALL
    products: frozenset[tuple[int, str]] = frozenset()
    tiles: str = ""
    argument: str = ""


def unsafe_products(text: str, imported: Mapping[str, ast.FunctionDef] | None = None) -> list[tuple[int, str]]:
    """The (line, source) of each unsafe product that reaches an address or a mask in a file's Triton kernels.

    Args:
        text: the file's content.
        imported: Triton functions from other files that it may call.
    """
    own = {function.name: function for function in jit_functions(text)}
    functions = {**(imported or {}), **own}
    products: set[tuple[int, str]] = set()
    for function in own.values():
        # Helpers are followed at each call, with the arguments of that call.
        if not function.name.endswith("_kernel"):
            continue
        first = _Walk(functions)
        first.run(function, [_parameter(argument, set()) for argument in function.args.args])
        second = _Walk(functions)
        second.run(function, [_parameter(argument, first.counts) for argument in function.args.args])
        products |= second.products
    return sorted(products)


def jit_functions(text: str) -> list[ast.FunctionDef]:
    """The functions in a Python source that are decorated with `@triton.jit`."""
    return [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).split("(")[0] == "triton.jit" for decorator in node.decorator_list)
    ]


def _parameter(argument: ast.arg, counts: set[str]) -> Value:
    annotation = "" if argument.annotation is None else ast.unparse(argument.annotation)
    if "constexpr" in annotation:
        return Value()
    size = _LARGE if argument.arg in counts else _WIDTH
    return Value(wide=annotation in _WIDE, size=size, argument=argument.arg)


def _one_of(values: Iterable[Value]) -> Value:
    values = list(values)
    return replace(_sum(values), wide=all(value.wide for value in values), tiles=_common(values))


def _sum(values: Iterable[Value]) -> Value:
    values = list(values)
    return Value(
        wide=any(value.wide for value in values),
        size=max((value.size for value in values), default=_SMALL),
        products=frozenset().union(*(value.products for value in values)),
    )


def _common(values: list[Value]) -> str:
    return values[0].tiles if len({value.tiles for value in values}) == 1 else ""


class _Walk:
    """Follows one kernel from its arguments to its addresses."""

    def __init__(self, functions: Mapping[str, ast.FunctionDef]) -> None:
        self.functions = functions
        self.products: set[tuple[int, str]] = set()
        self.counts: set[str] = set()
        self.growing = 0

    def run(self, function: ast.FunctionDef, arguments: list[Value]) -> list[Value]:
        """The values that `function` returns."""
        names = [argument.arg for argument in function.args.args]
        scope = dict(zip(names, arguments, strict=True))
        returned: list[list[Value]] = []
        self.block(function.body, scope, returned)
        return [_one_of(values) for values in zip(*returned, strict=True)]

    def block(self, body: list[ast.stmt], scope: dict[str, Value], returned: list[list[Value]]) -> None:
        for node in body:
            self.statement(node, scope, returned)

    def statement(self, node: ast.stmt, scope: dict[str, Value], returned: list[list[Value]]) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self.assign(target, node.value, scope)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.assign(node.target, node.value, scope)
        elif isinstance(node, ast.AugAssign):
            total = ast.copy_location(
                ast.BinOp(ast.parse(ast.unparse(node.target), mode="eval").body, node.op, node.value), node
            )
            self.assign(node.target, total, scope)
        elif isinstance(node, ast.For | ast.While):
            self.loop(node, scope, returned)
        elif isinstance(node, ast.If):
            self.evaluate(node.test, scope)
            other = dict(scope)
            self.block(node.body, scope, returned)
            self.block(node.orelse, other, returned)
            self.merge(scope, other)
        elif isinstance(node, ast.Return) and node.value is not None:
            returned.append(self.several(node.value, scope))
        elif isinstance(node, ast.Expr):
            self.evaluate(node.value, scope)

    def loop(self, node: ast.For | ast.While, scope: dict[str, Value], returned: list[list[Value]]) -> None:
        counter = Value(size=_LARGE)
        if isinstance(node, ast.For):
            counter = self.evaluate(node.iter, scope)
        before = dict(scope)
        self.growing += counter.size > _SMALL
        # Twice, because values from one iteration reach the next.
        for _ in range(2):
            if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
                scope[node.target.id] = counter
            self.block(node.body, scope, returned)
        self.growing -= counter.size > _SMALL
        self.merge(scope, before)

    def merge(self, scope: dict[str, Value], other: Mapping[str, Value]) -> None:
        for name, value in other.items():
            scope[name] = _one_of([scope.get(name, value), value])

    def assign(self, target: ast.expr, source: ast.expr, scope: dict[str, Value]) -> None:
        if isinstance(target, ast.Tuple):
            values = self.several(source, scope)
            if len(values) != len(target.elts):
                values = [_one_of(values)] * len(target.elts)
            for name, value in zip(target.elts, values, strict=True):
                scope[ast.unparse(name)] = value
            return
        name = ast.unparse(target)
        value = self.evaluate(source, scope)
        again = any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(source))
        # A sum that a long loop adds to is not bounded by its terms.
        scope[name] = replace(value, size=_LARGE, argument="") if self.growing and again else value

    def several(self, node: ast.expr, scope: dict[str, Value]) -> list[Value]:
        if isinstance(node, ast.Tuple):
            return [self.evaluate(item, scope) for item in node.elts]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
            return self.call(self.functions[node.func.id], node, scope)
        return [self.evaluate(node, scope)]

    def call(self, function: ast.FunctionDef, node: ast.Call, scope: dict[str, Value]) -> list[Value]:
        parameters = function.args.args
        defaults = function.args.defaults
        arguments = dict(zip((parameter.arg for parameter in parameters), node.args, strict=False))
        arguments |= {
            parameter.arg: value
            for parameter, value in zip(parameters[::-1], defaults[::-1], strict=False)
            if parameter.arg not in arguments
        }
        arguments |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
        return self.run(function, [self.evaluate(arguments[parameter.arg], scope) for parameter in parameters])

    def evaluate(self, node: ast.expr, scope: dict[str, Value]) -> Value:
        if isinstance(node, ast.Name):
            return scope.get(node.id, Value())
        if isinstance(node, ast.BinOp):
            return self.binary(node, self.evaluate(node.left, scope), self.evaluate(node.right, scope))
        if isinstance(node, ast.UnaryOp):
            return self.evaluate(node.operand, scope)
        if isinstance(node, ast.Subscript):
            return self.evaluate(node.value, scope)
        if isinstance(node, ast.Compare):
            parts = [self.evaluate(part, scope) for part in (node.left, *node.comparators)]
            if any(part.wide for part in parts):
                self.counts |= {part.argument for part in parts}
            return Value(products=_sum(parts).products)
        if isinstance(node, ast.BoolOp):
            return Value(products=_sum(self.evaluate(part, scope) for part in node.values).products)
        if isinstance(node, ast.IfExp):
            return _one_of(self.evaluate(part, scope) for part in (node.body, node.orelse))
        if isinstance(node, ast.Tuple | ast.List):
            return _sum(self.evaluate(item, scope) for item in node.elts)
        if isinstance(node, ast.Call):
            return self.function(node, scope)
        return Value()

    def binary(self, node: ast.BinOp, left: Value, right: Value) -> Value:
        total = _sum([left, right])
        if isinstance(node.op, ast.Mod):
            return replace(total, size=min(left.size, right.size), tiles=right.tiles)
        if isinstance(node.op, ast.BitAnd):
            return replace(total, size=min(left.size, right.size))
        if isinstance(node.op, ast.FloorDiv | ast.RShift):
            return replace(total, size=left.size)
        if isinstance(node.op, ast.Mult | ast.LShift | ast.Pow) and not total.wide:
            if left.tiles == ast.unparse(node.right) or right.tiles == ast.unparse(node.left):
                return replace(total, size=_WIDTH)
            if left.size + right.size >= _LARGE:
                return replace(total, size=_LARGE, products=total.products | {(node.lineno, ast.unparse(node))})
        return total

    def function(self, node: ast.Call, scope: dict[str, Value]) -> Value:
        name = ast.unparse(node.func)
        if name in self.functions:
            return _sum(self.call(self.functions[name], node, scope))
        last = name.rsplit(".", 1)[-1]
        arguments = [self.evaluate(argument, scope) for argument in node.args]
        named = {keyword.arg: self.evaluate(keyword.value, scope) for keyword in node.keywords}
        receiver = []
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in _MODULES:
            receiver = [self.evaluate(node.func.value, scope)]
        if name in (f"tl.{access}" for access in _ADDRESSED):
            # tl.load(pointer, mask), tl.store(pointer, value, mask)
            masks = arguments[1:2] if last == "load" else arguments[2:3]
            for value in (arguments[0], *masks, named.get("mask", Value())):
                self.products |= value.products
            return Value(size=_LARGE)
        if last in ("program_id", "num_programs"):
            return Value(size=_LARGE)
        if last in ("to", "cast"):
            kind = ast.unparse(node.args[-1] if node.args else node.keywords[0].value)
            return replace((receiver + arguments)[0], wide=kind in _WIDE)
        if last == "cdiv":
            return replace(_sum(arguments), size=arguments[0].size, tiles=ast.unparse(node.args[1]))
        if last == "where":
            return _one_of(arguments[1:])
        if last == "static_range":
            return Value()
        total = _sum([*receiver, *arguments, *named.values()])
        if last in ("full", "zeros"):
            return replace(total, wide=any(ast.unparse(argument) in _WIDE for argument in node.args))
        if last == "minimum":
            return replace(total, size=min(value.size for value in arguments))
        return total
