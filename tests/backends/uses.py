"""What Python code uses of TensorRT, found in its syntax tree and compared with the bindings.

Types are followed from the module `trt`, which `library()` returns, through constructors, what
methods return, and annotations `trt.…`. That is enough for code that is written for it; what it
does not follow, a test finds by name (`unfollowed`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from backends.bindings import Bindings, Signature

# What properties and some methods return: docstrings say none, or a name of C++.
RETURNED = {
    ("IAttentionBoundaryLayer", "attention"): "IAttention",
    ("ILayer", "type"): "LayerType",
    ("OnnxParser", "get_error"): "ParserError",
    ("OnnxParserRefitter", "get_error"): "ParserError",
}


@dataclass(frozen=True)
class Type:
    """Of an expression. kind: "module", "class", "object", "method", "own class", "own object" or
    "own function"; name: of the class, or of the method's"""

    kind: str
    name: str = ""
    method: str = ""


@dataclass(frozen=True)
class Use:
    """A name of TensorRT's in the code: `node` has it in the field `field`."""

    node: ast.AST
    field: str


@dataclass(frozen=True)
class Found:
    """problems: uses that the bindings do not have; uses: all of them; calls: of their methods and
    constructors"""

    problems: list[str]
    uses: list[Use]
    calls: list[ast.Call]


Trees = Mapping[str, ast.Module]


def find(trees: Trees, bindings: Bindings) -> Found:
    """What the modules, by their files' names, use of the bindings."""
    own = _Own(trees)
    for _ in range(3):  # attributes take their types from what others return
        found = Found([], [], [])
        for file, tree in trees.items():
            _Module(file, own, bindings, found).walk(tree)
    return found


def unfollowed(trees: Trees, found: Found, bindings: Bindings) -> set[str]:
    """Attributes that are called like some of TensorRT's with two words and were not followed to
    it."""
    names = {
        name
        for kind in bindings.kinds.values()
        for name in (*kind.methods, *kind.properties, *kind.members)
        if "_" in name.strip("_") and not name.startswith("__")
    }
    followed = {id(use.node) for use in found.uses}
    return {
        node.attr
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in names and id(node) not in followed
    }


class _Own:
    """The modules' own functions and classes: what they return and hold, by their names."""

    def __init__(self, trees: Trees) -> None:
        self.functions: dict[str, ast.FunctionDef] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.attributes: dict[tuple[str, str], Type] = {}
        for tree in trees.values():
            for node in tree.body:
                if isinstance(node, ast.FunctionDef):
                    self.functions[node.name] = node
                elif isinstance(node, ast.ClassDef):
                    self.classes[node.name] = node

    def method(self, kind: str, name: str) -> ast.FunctionDef | None:
        of = self.classes[kind].body
        return next((n for n in of if isinstance(n, ast.FunctionDef) and n.name == name), None)


Names = dict[str, Type]


class _Module:
    """One module's walk."""

    def __init__(self, file: str, own: _Own, bindings: Bindings, found: Found) -> None:
        self.file, self.own, self.bindings, self.found = file, own, bindings, found

    def walk(self, tree: ast.Module) -> None:
        self.block(tree.body, {}, "")

    def wrong(self, node: ast.AST, sentence: str) -> None:
        self.found.problems.append(f"{self.file}:{getattr(node, 'lineno', 0)}: {sentence}")

    # Statements.

    def block(self, body: list[ast.stmt], names: Names, within: str) -> None:
        for node in body:
            self.statement(node, names, within)

    def statement(self, node: ast.stmt, names: Names, within: str) -> None:
        if isinstance(node, ast.FunctionDef):
            self.function(node, names, within)
        elif isinstance(node, ast.ClassDef):
            self.subclass(node, names)
            self.block(node.body, dict(names), node.name)
        elif isinstance(node, ast.Assign):
            value = self.type(node.value, names)
            for target in node.targets:
                self.assign(target, value, names, within)
        elif isinstance(node, ast.AnnAssign):
            value = self.annotated(node.annotation, names)
            if node.value is not None:
                self.type(node.value, names)
            self.assign(node.target, value, names, within)
        elif isinstance(node, ast.With):
            for item in node.items:
                self.type(item.context_expr, names)
            self.block(node.body, names, within)
        elif isinstance(node, ast.For | ast.While | ast.If | ast.Try):
            for name, value in ast.iter_fields(node):
                if name in ("body", "orelse", "finalbody"):
                    self.block(value, names, within)
                elif name == "handlers":
                    for handler in value:
                        self.block(handler.body, names, within)
                elif isinstance(value, ast.expr):
                    self.type(value, names)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.type(child, names)

    def function(self, node: ast.FunctionDef, names: Names, within: str) -> None:
        inner = dict(names)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            inner.pop(argument.arg, None)
            if argument.arg == "self" and within:
                inner["self"] = Type("own object", within)
            elif argument.annotation is not None:
                found = self.annotated(argument.annotation, names)
                if found is not None:
                    inner[argument.arg] = found
        if node.returns is not None:
            self.annotated(node.returns, names)
        self.block(node.body, inner, within)

    def subclass(self, node: ast.ClassDef, names: Names) -> None:
        """All that a class of TensorRT's wants to be told has a method, with its parameters."""
        for base in node.bases:
            found = self.type(base, names)
            if found is None or found.kind != "class":
                continue
            methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
            for name, overloads in self.bindings.kinds[found.name].methods.items():
                if name.startswith("_"):
                    continue
                if name not in methods:
                    self.wrong(node, f"{node.name} has no {name}, which {found.name} calls")
                    continue
                self.found.uses.append(Use(methods[name], "name"))
                given = [a.arg for a in methods[name].args.args][1:]
                if given not in [list(o.parameters) for o in overloads]:
                    self.wrong(node, f"{node.name}.{name} takes {given}")

    def assign(self, target: ast.expr, value: Type | None, names: Names, within: str) -> None:
        if isinstance(target, ast.Name):
            if value is not None:
                names[target.id] = value
            return
        if not isinstance(target, ast.Attribute):
            return
        if target.attr == "__class__" and isinstance(target.value, ast.Name):
            if value is not None:
                names[target.value.id] = Type("object", value.name)
            return
        owner = self.type(target.value, names)
        if owner is not None and owner.kind == "own object":
            if value is not None:
                self.own.attributes[owner.name, target.attr] = value
        elif owner is not None and owner.kind == "object":
            self.found.uses.append(Use(target, "attr"))
            if not self.bindings.kinds[owner.name].properties.get(target.attr):
                self.wrong(target, f"{owner.name}.{target.attr} cannot be set")

    # Expressions.

    def annotated(self, node: ast.expr, names: Names) -> Type | None:
        """What is of an annotation's type; of `X | None`, X."""
        if isinstance(node, ast.BinOp):
            return self.annotated(node.left, names) or self.annotated(node.right, names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            found = self.type(node, {**names, "trt": Type("module")})
            return Type("object", found.name) if found is not None else None
        if isinstance(node, ast.Name) and node.id in self.own.classes:
            return Type("own object", node.id)
        return None

    def type(self, node: ast.expr, names: Names) -> Type | None:
        """Of an expression, None of what is not TensorRT's; on the way all uses in it are seen."""
        if isinstance(node, ast.Name):
            if node.id in names:
                return names[node.id]
            if node.id in self.own.classes:
                return Type("own class", node.id)
            return Type("own function", node.id) if node.id in self.own.functions else None
        if isinstance(node, ast.Attribute):
            return self.attribute(node, self.type(node.value, names))
        if isinstance(node, ast.Call):
            return self.call(node, names)
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
            return self.comprehension(node, names)
        if isinstance(node, ast.NamedExpr):
            value = self.type(node.value, names)
            self.assign(node.target, value, names, "")
            return value
        if isinstance(node, ast.IfExp):
            self.type(node.test, names)
            found = [self.type(n, names) for n in (node.body, node.orelse)]
            return found[0] or found[1]
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.type(child, names)
            elif isinstance(child, ast.keyword):
                self.type(child.value, names)
        return None

    def comprehension(self, node: ast.expr, names: Names) -> None:
        inner = dict(names)
        for generator in getattr(node, "generators", []):
            self.type(generator.iter, inner)
            for condition in generator.ifs:
                self.type(condition, inner)
        for part in ("elt", "key", "value"):
            if isinstance(child := getattr(node, part, None), ast.expr):
                self.type(child, inner)

    def attribute(self, node: ast.Attribute, owner: Type | None) -> Type | None:
        if owner is None or owner.kind in ("method", "own function", "own class"):
            return None
        if owner.kind == "own object":
            return self.of_own(owner.name, node.attr)
        self.found.uses.append(Use(node, "attr"))
        if owner.kind == "module":
            if node.attr in self.bindings.kinds:
                return Type("class", node.attr)
            if node.attr not in self.bindings.names:
                self.wrong(node, f"trt has no {node.attr}")
            return None
        kind = self.bindings.kinds[owner.name]
        if owner.kind == "class":
            if f"{owner.name}.{node.attr}" in self.bindings.kinds:
                return Type("class", f"{owner.name}.{node.attr}")
            if node.attr in kind.members:
                return Type("object", owner.name)
        if node.attr in kind.methods:
            return Type("method", owner.name, node.attr)
        if owner.kind == "object" and node.attr in kind.properties:
            return self.returned(owner.name, node.attr, "")
        self.wrong(node, f"{owner.name} has no {node.attr}")
        return None

    def of_own(self, kind: str, name: str) -> Type | None:
        if (kind, name) in self.own.attributes:
            return self.own.attributes[kind, name]
        if kind in self.own.classes and self.own.method(kind, name) is not None:
            return Type("own function", f"{kind}.{name}")
        return None

    def call(self, node: ast.Call, names: Names) -> Type | None:
        function = self.type(node.func, names)
        for argument in node.args:
            self.type(argument, names)
        for keyword in node.keywords:
            self.type(keyword.value, names)
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called == "library":
            return Type("module")
        if called == "hasattr":
            self.asked(node, names)
        if function is None:
            return None
        if function.kind == "own class":
            return Type("own object", function.name)
        if function.kind == "own function":
            return self.own_returned(function.name)
        if function.kind == "class":
            self.matched(node, function.name, "__init__")
            return Type("object", function.name)
        if function.kind == "method":
            chosen = self.matched(node, function.name, function.method)
            return self.returned(function.name, function.method, chosen.returns if chosen else "")
        return None

    def asked(self, node: ast.Call, names: Names) -> None:
        """hasattr(trt, "Name"), hasattr(trt.Enum, "MEMBER")"""
        of, name = self.type(node.args[0], names), node.args[1]
        if of is None or not isinstance(name, ast.Constant):
            return
        self.found.uses.append(Use(name, "value"))
        known = self.bindings.kinds
        if name.value not in (known if of.kind == "module" else known[of.name].members):
            self.wrong(node, f"{of.name or 'trt'} has no {name.value}")

    def own_returned(self, name: str) -> Type | None:
        kind, _, method = name.rpartition(".")
        node = self.own.method(kind, method) if kind else self.own.functions[name]
        if node is None or node.returns is None:
            return None
        return self.annotated(node.returns, {})

    def returned(self, kind: str, name: str, said: str) -> Type | None:
        for of in (kind, *self.bindings.kinds[kind].bases):
            said = RETURNED.get((of, name), said)
        return Type("object", said) if said in self.bindings.kinds else None

    def matched(self, node: ast.Call, kind: str, method: str) -> Signature | None:
        """The overload that takes the call's arguments."""
        self.found.calls.append(node)
        overloads = self.bindings.kinds[kind].methods.get(method, ())
        if kind in self.bindings.kinds and self.bindings.kinds[kind].members:
            return None  # an enum of a number
        unbound = isinstance(node.func, ast.Attribute) and method == "__init__"
        unbound = unbound and node.func.attr == "__init__"  # type: ignore[union-attr]
        given = len(node.args) - unbound
        keywords = [k.arg for k in node.keywords if k.arg is not None]
        self.found.uses.extend(Use(k, "arg") for k in node.keywords)
        for signature in overloads:
            free = signature.parameters[given:]
            needed = {p for p in free if p not in signature.optional}
            if given <= len(signature.parameters) and needed <= set(keywords) <= set(free):
                return signature
        self.wrong(node, f"{kind}.{method} does not take {given} arguments and {keywords}")
        return None


def mutations(found: Found) -> Iterator[tuple[str, Use | ast.Call]]:
    """Every use and call, each with what it is."""
    for use in found.uses:
        yield f"{type(use.node).__name__} {getattr(use.node, use.field)}", use
    for call in found.calls:
        yield f"call of {ast.unparse(call.func)}", call
