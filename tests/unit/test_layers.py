"""Who may import whom: imports point downwards, libraries stay where they belong, plugins see the public surface only.

A new module gets its place in LAYERS; a library that only some modules may import gets a row in HOLDERS. Then
`python tests/unit/test_layers.py` writes .importlinter anew: import-linter follows chains of imports, too.
"""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LAYERS = {  # top to bottom; a module may import its own row and the rows of smaller numbers
    "4": "acting attended cli limits once options spooling testing upkeep views",
    "3 parent": "control daemon fleet guardian holds logpump loop managed once_run operator preload process reload "
    "run_requests supervisor watch",
    "3 child": "assembly buckets child clockstep context database durable http intime keeper limiter line "
    "migrate migrations patient pruning queries reading rehearsal runner schema session statements store "
    "surroundings ticker warmup",
    "3 outside": "client",
    "2": "registry",
    "1": "channel config hookspecs log secret settings systemd tomllines tomlschema",
    # the standard library only
    "0": "__init__ backoff claims durations errors heartbeat hosts job locate memory signals slots states status "
    "texts unpack walltimer wire",
}
ACROSS = {("process", "child")}  # the one door between the sides: the forked child's entry
HOLDERS = {  # import name: the modules of the core that may have it
    "multiprocess": "process",
    "requests": "http intime warmup",
    "sqlalchemy": "assembly buckets database migrate migrations pruning queries reading schema session statements "
    "store warmup",
    "urllib3": "http intime",
    "msgspec": "",
    "pika": "",
}
DOUBLES = {"stellerd_bamboo_sandbox"}  # a plugin made to be tested against: tests of the others may import it
IMPORT_LINTER = """\
# Written by tests/unit/test_layers.py, where the layers stand; not by hand.
[importlinter]
root_packages =
    stellerd{plugins}
include_external_packages = True
exclude_type_checking_imports = True

[importlinter:contract:layers]
name = The core's imports point downwards
type = layers
containers = stellerd
exhaustive = True
layers ={layers}

[importlinter:contract:parent]
name = The supervisor's side imports nothing of the child's but its entry
type = forbidden
source_modules ={parent}
forbidden_modules ={child}
    requests
    sqlalchemy
ignore_imports ={across}

[importlinter:contract:child]
name = The child's side and the client import nothing of the supervisor's
type = forbidden
source_modules ={child}
forbidden_modules ={parent}
    multiprocess

[importlinter:contract:core]
name = The core knows no plugin and no broker
type = forbidden
source_modules = stellerd
forbidden_modules ={nobodys}{plugins}

[importlinter:contract:plugins]
name = Plugins know nothing of each other
type = independence
modules ={plugins}

[importlinter:contract:circles]
name = The core has no circle of imports, not even a late one
type = acyclic_siblings
ancestors = stellerd
"""
DISTRIBUTIONS = {"pydantic_core": "pydantic", "tomli_w": "tomli-w"}  # where they differ from the import name


def layer_of() -> dict[str, str]:
    return {module: layer for layer, modules in LAYERS.items() for module in modules.split()}


def imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, in functions and `import_module("literal")` too, `if TYPE_CHECKING` not.

    `from a import b` gives "a.b"; a relative import is made absolute with `package`.
    """
    todo: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo.extend(node.orelse)
            continue
        todo.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield from ((node.lineno, ".".join([*parents, node.module or "", a.name]).strip(".")) for a in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def files_of(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every Python file under `folder` with the dotted name of the package it is in."""
    for path in sorted(folder.rglob("*.py")):
        yield path, ".".join(path.relative_to(folder.parent).parent.parts)


def required(setup_cfg: Path) -> set[str]:
    """The distributions that an installation brings, in lower case with dashes."""
    parser = configparser.ConfigParser()
    parser.read(setup_cfg)
    lines = parser["options"]["install_requires"].split()
    return {re.split(r"[<>=!~;\[]", line)[0].lower().replace("_", "-") for line in lines}


def undeclared(name: str, requirements: set[str]) -> bool:
    """True for a library that `requirements` do not bring."""
    top = name.partition(".")[0]
    ours = top in sys.stdlib_module_names or top == "stellerd" or top.startswith("stellerd_")
    return not ours and DISTRIBUTIONS.get(top, top.replace("_", "-")) not in requirements


def core_breaches(root: Path) -> Iterator[str]:
    layers, requirements = layer_of(), required(root / "setup.cfg")
    unplaced = {path.stem for path in (root / "stellerd").glob("*.py")} - set(layers)
    for module in sorted(unplaced):
        yield f"stellerd/{module}.py: has no layer: add it to LAYERS in tests/unit/test_layers.py"
    for path, package in files_of(root / "stellerd"):
        module = Path(path.relative_to(root / "stellerd").parts[0]).stem  # a folder counts as one module
        for line, name in imports(path, package):
            if unplaced.isdisjoint((module, *name.split(".")[1:2])):
                for breach in core_breach(module, name, layers, requirements):
                    yield f"{path.relative_to(root)}:{line}: {breach}"


def core_breach(module: str, name: str, layers: dict[str, str], requirements: set[str]) -> Iterator[str]:
    top, _, rest = name.partition(".")
    if top == "stellerd":
        if rest:
            yield from upward(module, rest.partition(".")[0], layers)
    elif top.startswith("stellerd_"):
        yield f"the core imports the plugin {top}"
    elif top not in sys.stdlib_module_names and layers[module] == "0":
        yield f"imports {top}, but layer 0 has the standard library only"
    elif module not in HOLDERS.get(top, module).split():
        yield f"imports {top}, which is for {HOLDERS[top] or 'plugins'} only"
    elif undeclared(name, requirements):
        yield f"imports {top}, which install_requires of setup.cfg does not name"


def upward(module: str, target: str, layers: dict[str, str]) -> Iterator[str]:
    if target not in layers:
        yield f"imports {target} from stellerd itself: inside the core name the module that defines it"
        return
    mine, theirs = layers[module], layers[target]
    if theirs[0] > mine[0]:
        yield f"layer {mine} imports upwards: {target} is in layer {theirs}"
    elif theirs[0] == mine[0] and theirs != mine and (module, target) not in ACROSS:
        yield f"{mine} imports {target} of {theirs}: the sides know each other by messages only"


def plugin_breaches(root: Path) -> Iterator[str]:
    surface = public_surface(root)
    for plugin in sorted((root / "plugins").glob("*/setup.cfg")):
        own, requirements = f"stellerd_{plugin.parent.name}", required(plugin)
        for path, package in files_of(plugin.parent / "src"):
            for line, name in imports(path, package.partition(".")[2]):
                where = f"{path.relative_to(root)}:{line}"
                if undeclared(name, requirements):
                    yield f"{where}: imports {name}, which install_requires of its setup.cfg does not name"
                yield from (f"{where}: {breach}" for breach in plugin_breach(name, own, surface))
        for path, package in files_of(plugin.parent / "tests"):
            for line, name in imports(path, package):
                if not name.startswith("stellerd.testing") and name.partition(".")[0] not in DOUBLES:
                    where = f"{path.relative_to(root)}:{line}"
                    yield from (f"{where}: {breach}" for breach in plugin_breach(name, own, surface))


def plugin_breach(name: str, own: str, surface: set[str]) -> Iterator[str]:
    top, _, rest = name.partition(".")
    if top.startswith("stellerd_") and top != own:
        yield f"imports {top}: plugins never import each other"
    if top == "stellerd" and rest and rest not in surface:
        yield f"imports {name}: plugins import only {', '.join(sorted(surface))} from stellerd"


def public_surface(root: Path) -> set[str]:
    for node in ast.parse((root / "stellerd" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError("stellerd/__init__.py has no __all__")


def cycles(root: Path) -> list[list[str]]:
    """Circles of imports at module level (one inside a function is a way out of a circle)."""
    graph: dict[str, set[str]] = {}
    for path, package in files_of(root / "stellerd"):
        inner = {line for node in ast.walk(ast.parse(path.read_text())) for line in lines_inside(node)}
        names = (name.split(".")[1] for line, name in imports(path, package)
                 if line not in inner and name.startswith("stellerd."))  # fmt: skip
        graph[path.stem] = set(names) - {path.stem}
    found: list[list[str]] = []

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(trail[trail.index(module) :])
        elif module in graph:
            for target in sorted(graph.pop(module)):
                visit(target, [*trail, module])

    for module in sorted(graph):
        visit(module, [])
    return found


def lines_inside(node: ast.AST) -> range:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return range(node.lineno, (node.end_lineno or node.lineno) + 1)
    return range(0)


def import_linter() -> str:
    """The text of .importlinter: LAYERS, ACROSS and HOLDERS in import-linter's words."""

    def core(*layers: str) -> str:
        return lines(f"stellerd.{module}" for layer in layers for module in LAYERS[layer].split())

    def lines(names: Iterable[str]) -> str:
        return "".join(f"\n    {name}" for name in names)

    rows: dict[str, list[str]] = {}
    for layer, modules in LAYERS.items():
        rows.setdefault(layer[0], []).extend(module for module in modules.split() if module != "__init__")
    return IMPORT_LINTER.format(
        layers=lines(" : ".join(row) for row in rows.values()),
        parent=core("3 parent"),
        child=core("3 child", "3 outside"),
        across=lines(f"stellerd.{source} -> stellerd.{target}" for source, target in sorted(ACROSS)),
        nobodys=lines(library for library, holders in HOLDERS.items() if not holders),
        plugins=lines(f"stellerd_{path.parent.name}" for path in sorted(REPOSITORY.glob("plugins/*/setup.cfg"))),
    )


def test_the_core_keeps_its_layers() -> None:
    assert list(core_breaches(REPOSITORY)) == []


def test_the_core_has_no_circle_of_imports() -> None:
    assert cycles(REPOSITORY) == []


def test_plugins_see_the_public_surface_only() -> None:
    assert list(plugin_breaches(REPOSITORY)) == []


def test_the_table_names_each_module_once_and_no_other() -> None:
    named = [module for modules in LAYERS.values() for module in modules.split()]
    here = REPOSITORY / "stellerd"
    assert sorted(named) == sorted(
        [*(path.stem for path in here.glob("*.py")), *(path.parent.name for path in here.glob("*/__init__.py"))]
    )


def test_import_linter_has_the_same_table() -> None:
    assert (REPOSITORY / ".importlinter").read_text() == import_linter(), "run: python tests/unit/test_layers.py"


# The checks themselves, against small trees with one breach each.


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A core of a few modules and one plugin, without a breach."""
    sources = {
        "setup.cfg": "[options]\ninstall_requires =\n    sqlalchemy>=2\n    multiprocess\n    requests\n    click\n",
        "stellerd/__init__.py": 'from stellerd import errors\n__all__ = ["Job", "errors"]\n',
        "stellerd/errors.py": "import os\n",
        "stellerd/config.py": "from stellerd.errors import X\n",
        "stellerd/store.py": "import sqlalchemy\nfrom stellerd import config\n",
        "stellerd/process.py": "import multiprocess\n\ndef enter():\n    from stellerd import child\n",
        "stellerd/child.py": "from stellerd.store import Store\n",
        "plugins/one/setup.cfg": "[options]\ninstall_requires =\n    stellerd\n    pika>=1.3\n",
        "plugins/one/src/stellerd_one/__init__.py": "import pika\nfrom stellerd import Job\nfrom . import part\n",
        "plugins/one/src/stellerd_one/part.py": "from stellerd_one import x\n",
        "plugins/one/tests/test_one.py": "import stellerd.testing\nimport stellerd_one\n",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def test_a_clean_tree_passes(tree: Path) -> None:
    assert [*core_breaches(tree), *plugin_breaches(tree)] == []
    assert cycles(tree) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("stellerd/errors.py", "from stellerd.config import Config", "layer 0 imports upwards: config is in layer 1"),
        ("stellerd/errors.py", "def late():\n    import stellerd.config", "layer 0 imports upwards"),
        ("stellerd/errors.py", "import click", "layer 0 has the standard library only"),
        ("stellerd/config.py", "from stellerd import store", "layer 1 imports upwards: store"),
        ("stellerd/store.py", "from stellerd import process", "3 child imports process of 3 parent"),
        (
            "stellerd/child.py",
            "from importlib import import_module\nimport_module('stellerd.process')",
            "process of 3 p",
        ),
        ("stellerd/config.py", "import requests", "requests, which is for http intime warmup only"),
        ("stellerd/child.py", "def late():\n    import sqlalchemy.orm", "sqlalchemy, which is for"),
        ("stellerd/child.py", "import pika", "pika, which is for plugins only"),
        ("stellerd/child.py", "import stellerd_one", "the core imports the plugin stellerd_one"),
        ("stellerd/child.py", "import tomli_w", "install_requires of setup.cfg does not name"),
        ("stellerd/child.py", "from stellerd import Job", "name the module that defines it"),
        ("stellerd/child.py", "from .process import spawn", "3 child imports process"),
        ("stellerd/extra.py", "", "has no layer: add it to LAYERS"),
        ("plugins/one/src/stellerd_one/part.py", "from stellerd.errors import X", "import only Job, errors"),
        ("plugins/one/src/stellerd_one/part.py", "from stellerd import testing", "import only Job, errors"),
        ("plugins/one/src/stellerd_one/part.py", "import stellerd_two", "plugins never import each other"),
        ("plugins/one/src/stellerd_one/part.py", "import msgspec", "install_requires of its setup.cfg does not"),
        ("plugins/one/tests/test_one.py", "from stellerd.store import Store", "import only Job, errors"),
        ("plugins/one/tests/test_one.py", "def f():\n    import stellerd_two", "plugins never import each other"),
    ],
)
def test_a_planted_breach_is_found(tree: Path, file: str, source: str, complaint: str) -> None:
    (tree / file).write_text(source + "\n")
    (found,) = [*core_breaches(tree), *plugin_breaches(tree)]
    assert found.startswith(file)
    assert complaint in found


def test_imports_for_type_checkers_are_free(tree: Path) -> None:
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stellerd.process import spawn\n"
    (tree / "stellerd/store.py").write_text(guarded)
    assert list(core_breaches(tree)) == []


def test_a_circle_is_found_and_a_late_import_breaks_it(tree: Path) -> None:
    (tree / "stellerd/errors.py").write_text("from stellerd import config\n")
    assert [set(circle) for circle in cycles(tree)] == [{"errors", "config"}]
    (tree / "stellerd/errors.py").write_text("def late():\n    from stellerd import config\n")
    assert cycles(tree) == []


if __name__ == "__main__":
    (REPOSITORY / ".importlinter").write_text(import_linter())
