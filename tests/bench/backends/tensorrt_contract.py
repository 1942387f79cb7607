"""Check that every TensorRT name, setter and call in our sources exists in a real binding.

The bindings publish no types, so mypy sees `Any` and passes everything. Here each expression gets a
kind from the annotations in the sources; a use of something that has no kind is a problem too, so
that nothing passes unread.

    PYTHONPATH=<unzipped wheel> LD_LIBRARY_PATH=<stub> python tensorrt_contract.py SOURCE...
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True)
class Kind:
    """What an expression holds: an object of a TensorRT class or of ours, no TensorRT, or who knows."""

    family: Literal["tensorrt", "own", "plain", "unknown"]
    name: str = ""
    element: Kind | None = None


PLAIN, UNKNOWN = Kind("plain"), Kind("unknown")


def dotted(node: ast.AST) -> str:
    """Return ``A.B`` for ``trt.A.B``, empty for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join(reversed(names)) if isinstance(node, ast.Name) and node.id == "trt" else ""


class Declarations:
    """What the sources say about themselves: imports, functions with their results, classes with their fields."""

    def __init__(self, trees: Sequence[ast.Module]) -> None:
        nodes = [node for tree in trees for node in ast.walk(tree)]
        imports = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
        self.plain_names = {(alias.asname or alias.name).split(".")[0] for alias in imports} | set(vars(builtins))
        self.plain_names -= {"trt", "Any", "object"}
        self.classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
        self.functions = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.fields: dict[tuple[str, str], Kind] = {}
        self.methods: dict[tuple[str, str], ast.FunctionDef] = {}
        for owner in self.classes.values():
            for node in ast.walk(owner):
                if isinstance(node, ast.AnnAssign) and (name := self.field_name(node, owner)):
                    self.fields[owner.name, name] = self.annotated(node.annotation)
            self.methods |= {(owner.name, node.name): node for node in owner.body if isinstance(node, ast.FunctionDef)}

    @staticmethod
    def field_name(node: ast.AnnAssign, owner: ast.ClassDef) -> str:
        if isinstance(node.target, ast.Name) and node in owner.body:
            return node.target.id
        is_own = isinstance(node.target, ast.Attribute) and ast.unparse(node.target.value) == "self"
        return node.target.attr if is_own and isinstance(node.target, ast.Attribute) else ""

    def annotated(self, node: ast.expr | None) -> Kind:
        """Return the kind that an annotation promises."""
        match node:
            case ast.Constant(value=str(text)):
                return self.annotated(ast.parse(text, mode="eval").body)
            case ast.Constant(value=None):
                return PLAIN
            case ast.Attribute() if dotted(node):
                return Kind("tensorrt", dotted(node))
            case ast.Attribute(value=value):
                return self.annotated(value)
            case ast.Name(id=name) if name in self.classes:
                return Kind("own", name)
            case ast.Name(id=name) if name in self.plain_names:
                return PLAIN
            case ast.BinOp(left=left, right=ast.Constant(value=None)):
                return self.annotated(left)
            case ast.BinOp(left=left, right=right) if self.annotated(left) == self.annotated(right) == PLAIN:
                return PLAIN
            case ast.Subscript(value=ast.Name(id="list" | "tuple" | "Sequence" | "Iterator"), slice=inner):
                return Kind("plain", element=self.annotated(inner.elts[0] if isinstance(inner, ast.Tuple) else inner))
            case ast.Subscript(slice=inner):
                parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                return PLAIN if all(self.annotated(part) == PLAIN for part in parts) else UNKNOWN
        return UNKNOWN


@dataclass(frozen=True)
class Signature:
    """Parameters of one overload, without ``self``; the first *required* have no default."""

    names: tuple[str, ...]
    required: int

    def takes(self, call: ast.Call) -> bool:
        count = len(call.args) + len(call.keywords)
        return self.required <= count <= len(self.names) and all(k.arg in self.names for k in call.keywords)


def signatures(function: object) -> Iterator[Signature]:
    """Yield the overloads that pybind11 writes into the docstring of *function*."""
    for line in (getattr(function, "__doc__", None) or "").splitlines():
        found = re.match(r"(?:\d+\. )?\w+\((.*)\) -> ", line.strip())
        if found:
            parameters = [part for part in re.split(r", (?=\w+: )", found[1]) if part and not part.startswith("self:")]
            names = tuple(part.partition(":")[0] for part in parameters)
            yield Signature(names, sum(" = " not in part for part in parameters))


class Checker(ast.NodeVisitor):
    """Walk one source in order of execution and collect what *trt* does not have."""

    def __init__(self, trt: ModuleType, source: str, declared: Declarations) -> None:
        self.trt = trt
        self.source = source
        self.declared = declared
        self.scope: dict[str, Kind] = {}
        self.fixed: set[str] = set()
        self.owner = ""
        self.problems: list[str] = []
        self.checked = 0

    def report(self, node: ast.AST, what: str) -> None:
        self.problems.append(f"{self.source}:{getattr(node, 'lineno', 0)}: {what}")

    def find(self, path: str) -> object:
        found: object = self.trt
        for name in path.split("."):
            found = getattr(found, name, None)
        return found

    # Kinds of expressions

    def kind(self, node: ast.expr) -> Kind:
        declared = self.declared
        match node:
            case ast.Name(id=name):
                return self.scope.get(name, PLAIN if self.is_plain(name) else UNKNOWN)
            case ast.Constant() | ast.JoinedStr() | ast.Compare():
                return PLAIN
            case ast.Attribute(value=value, attr=name) if not dotted(node):
                base = self.kind(value)
                if base.family != "own":
                    return PLAIN if self.is_clean(base) else UNKNOWN
                return declared.fields.get((base.name, name), PLAIN if self.is_foreign(base.name) else UNKNOWN)
            case ast.Call(func=function):
                return self.result(node, function)
            case ast.Subscript(value=value):
                base = self.kind(value)
                return base.element or (PLAIN if base == PLAIN else UNKNOWN)
            case ast.Lambda():
                return UNKNOWN
            case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
                return Kind("plain", element=self.kind(element))
        parts = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        return PLAIN if all(self.is_clean(self.kind(part)) for part in parts) else UNKNOWN

    def is_clean(self, kind: Kind) -> bool:
        """Whether nothing of TensorRT can be inside."""
        if kind.family == "own":
            fields = [field for (owner, _), field in self.declared.fields.items() if owner == kind.name]
            return self.is_foreign(kind.name) and all(field != kind and self.is_clean(field) for field in fields)
        return kind.family == "plain" and (kind.element is None or self.is_clean(kind.element))

    def is_plain(self, name: str) -> bool:
        return name in self.declared.plain_names or name in self.declared.functions or name in self.declared.classes

    def is_foreign(self, owner: str) -> bool:
        """Whether what *owner* inherits comes from elsewhere than TensorRT."""
        return not any(dotted(base) for base in self.declared.classes[owner].bases)

    def result(self, call: ast.Call, function: ast.expr) -> Kind:
        declared = self.declared
        if dotted(function) and inspect.isclass(self.find(dotted(function))):
            return Kind("tensorrt", dotted(function))
        if isinstance(function, ast.Name) and function.id in declared.classes:
            return Kind("own", function.id)
        if isinstance(function, ast.Name) and function.id in declared.functions:
            return declared.annotated(declared.functions[function.id].returns)
        if isinstance(function, ast.Attribute) and (base := self.kind(function.value)).family == "own":
            method = declared.methods.get((base.name, function.attr))
            return declared.annotated(method.returns) if method else UNKNOWN
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        return PLAIN if all(self.is_clean(self.kind(each)) for each in [function, *given]) else UNKNOWN

    # Bindings of names

    def bind(self, target: ast.expr, kind: Kind) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for each in target.elts:
                self.bind(each, kind.element or (PLAIN if kind == PLAIN else UNKNOWN))
        elif isinstance(target, ast.Name) and target.id not in self.fixed:
            self.scope[target.id] = kind if self.scope.get(target.id, kind) == kind else UNKNOWN
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            self.declared.fields.setdefault((self.owner, target.attr), kind)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.bind(target, self.kind(node.value))
            self.visit(target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self.bind(node.target, self.kind(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.annotation)
        promised = self.declared.annotated(node.annotation)
        if isinstance(node.target, ast.Name):
            self.scope[node.target.id] = promised
            self.fixed.add(node.target.id)
        if node.value is not None:
            self.visit(node.value)
            self.check_promise(node.value, promised)
        self.visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.bind_each(node.target, node.iter)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def bind_each(self, target: ast.expr, iterable: ast.expr) -> None:
        kind = self.kind(iterable)
        self.bind(target, kind.element or (PLAIN if kind == PLAIN else UNKNOWN))

    def visit_withitem(self, node: ast.withitem) -> None:
        self.visit(node.context_expr)
        if node.optional_vars is not None:
            self.bind(node.optional_vars, self.kind(node.context_expr))

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.scope[node.name] = PLAIN
        self.generic_visit(node)

    def comprehend(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for generator in node.generators:
            self.visit(generator.iter)
            self.bind_each(generator.target, generator.iter)
        self.generic_visit(node)

    # ruff: noqa: N815  the names are those that ast.NodeVisitor looks for
    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = comprehend

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self.owner = self.owner, node.name
        self.generic_visit(node)
        self.owner = outer
        for base in filter(None, map(dotted, node.bases)):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    self.check_override(method, base)

    def enter(self, node: Function) -> None:
        outer = self.scope, self.fixed
        self.scope, self.fixed = dict(self.scope), set(self.fixed)
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            self.scope[argument.arg] = self.declared.annotated(argument.annotation)
            self.fixed.add(argument.arg)
        if self.owner and node.args.args and node.args.args[0].arg == "self":
            self.scope["self"] = Kind("own", self.owner)
        self.generic_visit(node)
        self.scope, self.fixed = outer
        if isinstance(node, ast.FunctionDef):
            self.bind(ast.Name(node.name), PLAIN)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = enter

    # Checks

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = dotted(node)
        if path:
            self.checked += 1
            if self.find(path) is None:
                self.report(node, f"trt.{path} is missing")
            return
        self.visit(node.value)
        base = self.kind(node.value)
        if base.family == "unknown" and not dotted(node.value):
            self.report(node, f"cannot classify {ast.unparse(node.value)}; annotate it")
        elif base.family == "tensorrt":
            self.check_member(node, base.name)

    def check_member(self, node: ast.Attribute, owner: str) -> None:
        self.checked += 1
        member = inspect.getattr_static(self.find(owner) or object, node.attr, None)
        if member is None and not hasattr(self.find(owner), node.attr):
            self.report(node, f"{owner}.{node.attr} is missing")
        elif isinstance(node.ctx, ast.Store) and not (isinstance(member, property) and member.fset):
            self.report(node, f"{owner}.{node.attr} cannot be set")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = node.func
        if path := dotted(function):
            found = self.find(path)
            self.check_call(node, path, getattr(found, "__init__", None) if inspect.isclass(found) else found)
        elif isinstance(function, ast.Attribute) and (base := self.kind(function.value)).family == "tensorrt":
            path = f"{base.name}.{function.attr}"
            self.check_call(node, path, self.find(path))
        elif not isinstance(function, ast.Attribute) and self.kind(function).family == "unknown":
            self.report(node, f"cannot classify {ast.unparse(function)}, which is called")

    def check_call(self, call: ast.Call, path: str, function: object) -> None:
        known = list(signatures(function))
        starred = any(isinstance(each, ast.Starred) for each in call.args) or any(k.arg is None for k in call.keywords)
        if function is None:
            return  # reported as missing
        self.checked += 1
        if not known or starred:
            self.report(call, f"cannot compare the arguments of {path}")
        elif not any(each.takes(call) for each in known):
            wanted = " or ".join(str(each.names) for each in known)
            self.report(call, f"{path} takes {wanted}, not {ast.unparse(call)}")

    def check_promise(self, value: ast.expr, promised: Kind) -> None:
        """Compare an annotation with the result that the binding documents."""
        if promised.family != "tensorrt" or not isinstance(value, ast.Call):
            return
        made = self.kind(value)
        if isinstance(value.func, ast.Attribute) and (base := self.kind(value.func.value)).family == "tensorrt":
            documented = getattr(self.find(f"{base.name}.{value.func.attr}"), "__doc__", None) or ""
            results = re.findall(r"\) -> [\w.]*?(\w+)$", documented, re.MULTILINE)
            made = Kind("tensorrt", results[0]) if results and self.find(results[0]) else UNKNOWN
        if made.family != "unknown" and made != promised:
            self.report(value, f"annotated trt.{promised.name}, but it is {made.name or made.family}")

    def check_override(self, method: ast.FunctionDef, base: str) -> None:
        names = tuple(argument.arg for argument in method.args.args[1:])
        known = list(signatures(getattr(self.find(base), method.name, None)))
        if known and all(len(each.names) != len(names) for each in known):
            self.report(method, f"{base}.{method.name} is called with {known[0].names}, not {names}")


def check(trt: ModuleType, paths: Sequence[Path]) -> tuple[int, list[str]]:
    """Return how many uses were compared with *trt*, and the problems found."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    declared = Declarations(trees)
    checkers = [Checker(trt, path.name, declared) for path in paths]
    for checker, tree in zip(checkers, trees, strict=True):
        checker.visit(tree)
    return sum(checker.checked for checker in checkers), [line for checker in checkers for line in checker.problems]


if __name__ == "__main__":
    bindings = importlib.import_module("tensorrt_bindings")
    count, problems = check(bindings, [Path(name) for name in sys.argv[1:]])
    print(f"tensorrt {bindings.__version__}: {count} uses checked, {len(problems)} problems", *problems, sep="\n")
    sys.exit(1 if problems else 0)
