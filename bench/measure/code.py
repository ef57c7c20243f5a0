"""The digest of some definitions and of all that they use, as they stand in their files; nothing is imported.

What changes no result changes no digest: comments, docstrings, annotations, the words of an error, the layout, the
order of definitions and imports, and which file a definition is in.
"""

import ast
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

OURS = ("bench", "methods", "priors")
Place = tuple[str, str]  # a module, or the path of its file, and a definition there; "": all of them
FINDERS: set[Place] = {  # of what has a name, which is not followed: it is a root where it is used
    ("bench.data.dataset", "find_dataset"),
    ("methods.registry", "accelerators"),
    ("methods.registry", "methods"),
    ("priors.catalogue", "CATALOGUE"),
}


class _Bare(ast.NodeTransformer):
    """Removes what decides no result."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:  # that held imports alone
        self.generic_visit(node)
        return node if node.body or node.orelse else None

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_Pass(self, node: ast.AST) -> None:
        return None

    visit_Import = visit_ImportFrom = visit_Pass


def _plain(node: Any) -> Any:
    """Return a syntax tree as JSON has it, the same in each version of Python."""
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, ast.AST):
        fields = [[name, _plain(value)] for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *fields]
    return [_plain(each) for each in node] if isinstance(node, list) else node


class _Module:
    """A file's definitions, and what its imports call by which name.

    A method of a class is also there as `Class.method`, and what is registered, or listed in a tuple, under a name as
    `@REGISTRY NAME`.
    """

    def __init__(self, text: str) -> None:
        self.definitions: dict[str, list[ast.AST]] = defaultdict(list)
        self.imports: dict[str, Place] = {}
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level:
                self.imports |= {each.asname or each.name: (node.module or "", each.name) for each in node.names}
            elif isinstance(node, ast.Import):
                whole = {each.asname or each.name.partition(".")[0]: each for each in node.names}
                self.imports |= {name: (each.name if each.asname else name, "") for name, each in whole.items()}
        for statement in _Bare().visit(tree).body:
            for name, node in (*((name, statement) for name in _names(statement)), *_parts(statement)):
                self.definitions[name].append(node)


def _names(statement: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines; "*" for one with another effect."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if found := [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]:
            return found
    return ["*"]


def _parts(statement: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    """Yield the methods of a class, and what has a name in a registry or in a tuple."""
    calls: list[tuple[ast.expr, ast.AST]] = [(each, statement) for each in getattr(statement, "decorator_list", [])]
    if isinstance(statement, ast.ClassDef):
        yield from ((f"{statement.name}.{each.name}", each) for each in statement.body if hasattr(each, "name"))
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Tuple):
        calls = [(each, each) for each in statement.value.elts]
    for call, node in calls:
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
            of = statement.targets[0] if isinstance(statement, ast.Assign) else call.func
            yield f"@{ast.unparse(of).removesuffix('.register')} {call.args[0].value!s}", node


_parsed = cache(_Module)  # copies of the code have most of their files in common


class Code:
    """The code in a folder that holds our packages, as it was when first read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, _Module] = {}
        self._digests: dict[tuple[object, ...], str] = {}

    def registered(self, folder: str, registry: str) -> dict[str, Place]:
        """Return where the files of a folder define what is registered, or listed, by name."""
        start, paths = f"@{registry} ", sorted((self.root / folder).glob("[!_]*.py"))
        modules = [f"{folder.replace('/', '.')}.{path.stem}" for path in paths]
        keys = [(module, key) for module in modules for key in self._module(module).definitions]
        return {key.removeprefix(start): (module, key) for module, key in keys if key.startswith(start)}

    def defines(self, place: Place) -> bool:
        """Return whether a definition is there."""
        return place[1] in self._module(place[0]).definitions

    def digest(self, roots: Sequence[Place], within: Sequence[str]) -> str:
        """Return the digest of definitions and of what they use in their own files and in packages or modules `within`.

        Raises OSError, SyntaxError and ValueError on a file that cannot be read.
        """
        key = (*roots, *within)
        if key not in self._digests:
            told = sorted(set(self._told(roots, within)))
            self._digests[key] = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
        return self._digests[key]

    def _told(self, roots: Sequence[Place], within: Sequence[str]) -> Iterator[str]:
        """Yield each definition that is reached, and what a name stands for that is not ours or is another one."""
        near = tuple(f"{each}." for each in (*within, *(module for module, _ in roots)))
        todo, seen = list(roots), set(roots)
        while todo:
            module, name = todo.pop()
            there = self._module(module).definitions
            nodes = [node for each in ((name, "*") if name else there) for node in there.get(each, ())]
            yield from (json.dumps(_plain(node)) for node in nodes)
            for local in {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}:
                if place := self._meant(module, local):
                    owner, original = place
                    if not _is_ours(owner):
                        yield f"{local} is {original} of {owner}"
                    elif original and original != local:
                        yield f"{local} is {original}"
                    if place not in seen and place not in FINDERS and f"{owner}.".startswith(near):
                        seen.add(place)
                        todo.append(place)

    def _meant(self, module: str, name: str) -> Place | None:
        """Return where a name is defined that stands in a module; None of a local or built-in one."""
        imported = False
        while name and (not imported or _is_ours(module)):
            there = self._module(module)
            if name in there.definitions:
                break
            if name in there.imports:
                module, name = there.imports[name]
            elif imported:
                return f"{module}.{name}", ""  # a module of a package
            else:
                return None
            imported = True
        return module, name

    def _module(self, name: str) -> _Module:
        """Return a module of ours, or one whose file is named. Raises OSError, SyntaxError, ValueError."""
        if name not in self._modules:
            path = Path(name) if name.endswith(".py") else self.root / f"{name.replace('.', '/')}.py"
            path = path if path.is_file() else path.with_suffix("") / "__init__.py"
            self._modules[name] = _parsed(path.read_text(encoding="utf-8"))
        return self._modules[name]


def _is_ours(module: str) -> bool:
    return module.endswith(".py") or module.partition(".")[0] in OURS
