"""The type checker that pytest puts on the package: annotations, and shapes where there are some.

jaxtyping's own hook binds the arguments of every call of every function, which took half the time of the suite. This
one does so only for functions whose annotations hold a shape; all others get beartype alone. Functions inside functions
are left as they are: they would be compiled anew each time the outer one runs, and no room has its border there.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

CHECKED = "__checked_under_pytest__"
CONF = BeartypeConf(violation_type=jaxtyping.TypeCheckError)
"""One error, whether a shape is wrong or a type."""


def holds_a_shape(made: FunctionType) -> bool:
    words = {word for hint in made.__annotations__.values() for word in re.findall(r"[A-Za-z_]\w*", str(hint))}
    return any(is_shape(made.__globals__.get(word)) for word in words)


def known_hints(made: FunctionType) -> dict[str, Any]:
    """The annotations as objects, but for those that only a static checker reads (imported for it, quoted aliases)."""
    hints: dict[str, Any] = {}
    for name, hint in made.__annotations__.items():
        one = FunctionType(made.__code__, made.__globals__, closure=made.__closure__)
        one.__annotations__ = {name: hint}
        with contextlib.suppress(NameError, TypeError):
            hints |= get_type_hints(one, include_extras=True)
    return hints


def typed(made: FunctionType) -> Any:
    written, made.__annotations__ = made.__annotations__, known_hints(made)
    try:
        checking = beartype(conf=CONF)(made)
    finally:
        made.__annotations__ = written
    checking.__annotations__ = written
    return checking


def is_shape(named: Any) -> bool:
    """`Float` and its like, or `Float[Tensor, "batch"]` under a name of its own."""
    return isinstance(named, type) and issubclass(named, jaxtyping.AbstractDtype | jaxtyping.AbstractArray)


def checked(thing: Any) -> Any:
    """The function with its annotations checked at run time, or the dataclass with those of its fields."""
    if isinstance(thing, type):
        if dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
            thing.__init__ = checked(thing.__init__)  # type: ignore[method-assign]
        return thing
    if not isinstance(thing, FunctionType):
        raise TypeError(f"a function or a class was to be checked, not {thing!r}")
    return jaxtyping.jaxtyped(typechecker=beartype)(thing) if holds_a_shape(thing) else typed(thing)


class Decorated(ast.NodeTransformer):
    """`checked` next to each function, since other decorators take annotations away, and first of each class's."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list.append(ast.copy_location(ast.Name(CHECKED, ast.Load()), node))
        return node  # what stands inside is not visited

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.copy_location(ast.Name(CHECKED, ast.Load()), node))
        return node


class CheckedLoader(SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:  # type: ignore[override]
        tree = Decorated().visit(ast.parse(data, path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True, optimize=_optimize)

    def path_stats(self, path: Any) -> Any:
        raise OSError("code with checks is not kept: it must not take the place of the code without")


class CheckedFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] != "interp":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Before the package is first imported: what is imported already stays unchecked."""
    early = sorted(name for name in sys.modules if name.split(".")[0] == "interp")
    if early:
        raise RuntimeError(f"imported before its checks: {early[:3]}")
    setattr(builtins, CHECKED, checked)
    sys.meta_path.insert(0, CheckedFinder())
