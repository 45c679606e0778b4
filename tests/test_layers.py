"""Who may import whom, and which doc names which file: the shape of the project, kept true."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edged"

# Each layer may import those before it; the parts of one layer never import each other.
LAYERS = (
    {"errors", "__version__", "binomial", "durable", "notify", "toml_index"},
    {"core"},
    {"config", "metrics"},
    {"chat", "config_lines"},
    {"engine", "routing", "privacy", "upstream", "ledger", "catalogue", "calibration"},
    {"learning"},
    {"dispatch", "testing", "bench", "optimize"},
    {"server", "standin", "chaos", "calibrate"},
    {"daemon"},
    {"cli"},
    {"starter", "__main__"},
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
PURE = ("routing", "privacy", "chat")
IMPURE = {
    *("asyncio", "time", "logging", "random", "secrets", "threading", "subprocess", "socket", "selectors", "signal"),
    *("os", "io", "pathlib", "shutil", "tempfile", "glob", "urllib", "http", "sqlite3", "multiprocessing"),
    *("aiohttp", "httpx", "requests", "psutil"),
}
DOCS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


def _modules():
    """Every module of the package by its dotted name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def _imports(path):
    """Every name a module imports, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = dict(_modules())
IMPORTS = {module: set(_imports(path)) for module, path in MODULES.items()}


def _part(name):
    return name.split(".")[1] if name.startswith("edged.") else None


def _importers(library):
    return {module for module, names in IMPORTS.items() if any(f"{name}.".startswith(f"{library}.") for name in names)}


def test_every_part_has_its_layer():
    """A new module or package is given a place before it is used."""
    assert {_part(module) for module in MODULES if _part(module)} <= set(RANK)


def test_imports_point_down_and_never_sideways():
    """core <- config <- chat <- {engine, routing, upstream, ledger, ...} <- dispatch <- server <- daemon <- cli."""
    wrong = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in names
        if (mine := _part(module)) and (theirs := _part(name)) and mine != theirs and RANK[theirs] >= RANK[mine]
    ]
    assert not wrong


def test_no_module_imports_itself_by_a_detour():
    """No cycle, inside a package either."""
    graph = defaultdict(set)
    for module, names in IMPORTS.items():
        for name in names:
            target = name if name in MODULES else name.rpartition(".")[0]
            if target in MODULES and target not in (module, "edged"):
                graph[module].add(target)
    left = set(MODULES)
    while free := {module for module in left if not graph[module] & left}:
        left -= free
    assert not left


def test_only_four_modules_know_llama_cpp():
    """A crash of the library can only happen where a child process runs: the worker, or the quantizer."""
    allowed = {"edged.engine.runner", "edged.engine.embedding_runner", "edged.engine.sampling", "edged.engine.quantize"}
    assert _importers("llama_cpp") <= allowed


def test_only_the_workers_constraints_know_llguidance():
    """It reads llama.cpp's vocabulary, so it belongs where llama.cpp is."""
    assert _importers("llguidance") == {"edged.engine.compiler", "edged.engine.constraint"}


def test_the_daemons_side_never_loads_llama_cpp():
    """host.py and what it imports stay free of the library: only the worker's own modules reach it."""
    reached, todo = set(), ["edged.engine.host", "edged.dispatch.dispatcher"]
    while todo:
        module = todo.pop()
        reached.add(module)
        names = {name if name in MODULES else name.rpartition(".")[0] for name in IMPORTS[module]}
        todo += [name for name in names if name in MODULES and name not in reached]
    assert not reached & (_importers("llama_cpp") | _importers("llguidance"))


@pytest.mark.parametrize("package", PURE)
def test_pure_packages_touch_nothing_outside(package):
    """Decisions and text work take time, load and config as arguments."""
    used = {(module, name) for module, names in IMPORTS.items() if _part(module) == package for name in names}
    assert not {(module, name) for module, name in used if name.split(".")[0] in IMPURE}
    calls = {
        f"{module}: {node.func.id}"
        for module, path in MODULES.items()
        if _part(module) == package
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "print", "input"}
    }
    assert not calls


def test_http_stays_at_the_edges():
    """aiohttp is for the port, the one upstream client, the composition root, and what only measures or pretends."""
    client = {f"edged.upstream.{module}" for module in ("client", "reading", "transport")}
    allowed = client | {"edged.daemon", "edged.standin"}
    at_large = {m for m in _importers("aiohttp") if _part(m) not in {"server", "testing", "bench"}}
    assert at_large <= allowed


def test_nothing_served_depends_on_a_double():
    """testing/ is imported by tests, the stand-in and the storm only."""
    assert _importers("edged.testing") <= {m for m in MODULES if _part(m) in {"testing", "standin", "chaos"}}


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_a_path_a_doc_names_exists(doc):
    """Links, and code spans that look like a file of this project."""
    text = doc.read_text(encoding="utf-8")
    links = {doc.parent / link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    tops = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    spans = re.findall(rf"`((?:\./)?(?:{tops})/[\w./-]+)(?:::\w+)?`", text)
    named = {ROOT / span for span in spans} | {path for path in links if path != doc.parent}
    assert not sorted(str(path) for path in named if not path.exists())
