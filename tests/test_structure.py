"""The house: a chapter's path is its module, the numbers are the order of imports, walls hold, importing only defines.

Every check returns what it found wrong, so that each can be shown to see a planted violation.
"""

import ast
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = "gti_nb"
NOT_CHAPTERS = {"index", "pipelines", "explore", "tutorials", "images"}  # without a number: they export nothing
DEFINING_DECORATORS = {
    "checked",
    "cached_property",
    "classmethod",
    "contextmanager",
    "dataclass",
    "delegates",
    "lru_cache",
    "no_grad",
    "overload",
    "patch",
    "property",
    "runtime_checkable",
    "staticmethod",
    "abstractmethod",
    "with_bars",
    "wraps",
    "setter",
}


def chapters(root: Path) -> dict[str, Path]:
    "Module -> notebook, in the order of the numbers."
    found = {}
    for path in sorted((root / "nbs").rglob("[0-9][0-9]_*.ipynb")):
        parts = path.relative_to(root / "nbs").with_suffix("").parts
        found[".".join([PACKAGE, *(re.sub(r"^\d+_", "", part) for part in parts)])] = path
    return found


def cells(notebook: Path) -> list[str]:
    "Sources of the code cells, without lines that only IPython understands."
    nb = json.loads(notebook.read_text())
    sources = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]
    return [re.sub(r"^\s*[%!].*$", "pass", s, flags=re.M) for s in sources]


def module_path(root: Path, module: str) -> Path:
    return root / Path(*module.split(".")).with_suffix(".py")


def imports(tree: ast.AST, module: str) -> list[tuple[str, str | None]]:
    "Every import of ours, wherever it stands: (module, name), the name None for a whole module."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(a.name, None) for a in node.names if a.name.split(".")[0] == PACKAGE]
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if target.split(".")[0] == PACKAGE:
                found += [(target, a.name) for a in node.names]
    return found


def resolve(root: Path, target: str, name: str | None) -> str:
    "The module an import reads from: `from gti_nb.data import tables` reads gti_nb.data.tables."
    inner = f"{target}.{name}"
    if name and module_path(root, inner).exists():
        return inner
    names = module_path(root, f"{target}.__init__")
    return f"{target}.__init__" if target != PACKAGE and names.exists() else target


def wrong_paths(root: Path) -> list[str]:
    "Chapters whose path is not their module, numbers used twice, chapters without a number, modules without a chapter."
    wrong, found = [], chapters(root)
    for module, path in found.items():
        said = re.findall(r"^#\| default_exp (\S+)", "\n".join(cells(path)), re.M)
        if said != [module.removeprefix(f"{PACKAGE}.")]:
            wrong.append(f"{path.name}: exports {said}, its path says {module}")
        if not module_path(root, module).exists():
            wrong.append(f"{path.name}: no module {module}")
    for folder in [root / "nbs", *(p for p in (root / "nbs").iterdir() if p.is_dir())]:
        numbers = Counter(p.name[:2] for p in folder.iterdir() if re.match(r"\d\d_", p.name))
        wrong += [f"{folder.name}: number {n} stands {count} times" for n, count in numbers.items() if count > 1]
    for path in (root / "nbs").iterdir():
        if not re.match(r"\d\d_", path.name) and path.stem not in NOT_CHAPTERS and not path.name.startswith((".", "_")):
            wrong.append(f"{path.name}: has no number")
    exported = {module_path(root, module) for module in found}
    for path in (root / PACKAGE).rglob("*.py"):
        if path.name not in ("__init__.py", "_modidx.py") and path not in exported:
            wrong.append(f"{path.relative_to(root)}: no chapter exports it")
    return wrong


def upward_imports(root: Path) -> list[str]:
    "Imports of a later module, in functions and under TYPE_CHECKING too, and of a later chapter in examples."
    order, wrong = list(chapters(root)), []
    place = {module: i for i, module in enumerate(order)}
    for module, notebook in chapters(root).items():
        sources = [("module", module_path(root, module).read_text())] + [("example", source) for source in cells(notebook)]
        for where, source in sources:
            for target, name in imports(ast.parse(source), module):
                read = resolve(root, target, name)
                if read in place and place[read] > place[module]:
                    wrong.append(f"{module} ({where}) imports {read}, a later chapter")
                if read == module and where == "module":
                    wrong.append(f"{module} imports itself")
    return wrong


def crossing_privates(root: Path) -> list[str]:
    "Private names taken from another module, by import or as an attribute of it."
    wrong = []
    files = [*(root / PACKAGE).rglob("*.py"), *(root / "tests").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    for path in files:
        if path.name == "_modidx.py":
            continue
        tree = ast.parse(path.read_text())
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        ours = set()
        for target, name in imports(tree, module):
            if name and name.startswith("_") and not name.startswith("__"):
                wrong.append(f"{module} takes {name} from {target}")
            if name and resolve(root, target, name) == f"{target}.{name}":
                ours.add(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
                if isinstance(node.value, ast.Name) and node.value.id in ours:
                    wrong.append(f"{module} reaches into {node.value.id}.{node.attr}")
    return wrong


def work_on_import(root: Path) -> list[str]:
    "Statements of a module that do something when it is imported."
    wrong = []
    for module in chapters(root):
        for node in ast.parse(module_path(root, module).read_text()).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            simple = isinstance(node, (ast.Import, ast.ImportFrom, ast.AnnAssign)) or docstring or for_types_only(node)
            assigns = isinstance(node, ast.Assign) and all(isinstance(t, (ast.Name, ast.Tuple)) for t in node.targets)
            defines = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and all(map(defining, node.decorator_list))
            if not (simple or assigns or defines):
                wrong.append(f"{module}: line {node.lineno} does something on import: {ast.unparse(node)[:80]}")
    return wrong


def for_types_only(node: ast.stmt) -> bool:
    "Whether a statement is `if TYPE_CHECKING:` with nothing but imports."
    typed = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse
    return typed and all(isinstance(inner, (ast.Import, ast.ImportFrom)) for inner in node.body)


def defining(decorator: ast.expr) -> bool:
    "Whether a decorator only changes what is defined."
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = call.attr if isinstance(call, ast.Attribute) else call.id if isinstance(call, ast.Name) else ""
    return name in DEFINING_DECORATORS


def too_long(root: Path) -> list[str]:
    "Modules of more than 350 lines."
    lengths = {module: len(module_path(root, module).read_text().splitlines()) for module in chapters(root)}
    return [f"{module}: {n} lines, at most 350; split it by subject" for module, n in lengths.items() if n > 350]


def benchmark_circles(root: Path) -> list[str]:
    "Benchmarks that import each other, directly or through others."
    names = {p.stem for p in (root / "benchmarks").glob("*.py")}
    reads: dict[str, set[str]] = {}
    for name in names:
        nodes = list(ast.walk(ast.parse((root / "benchmarks" / f"{name}.py").read_text())))
        found = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        reads[name] = (found | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}) & names
    for name in names:
        reached, todo = set(), [name]
        while todo:
            new = reads[todo.pop()] - reached
            reached |= new
            todo += new
        if name in reached:
            return [f"benchmarks/{name}.py imports itself through {', '.join(sorted(reached))}"]
    return []


CHECKS = (benchmark_circles, wrong_paths, upward_imports, crossing_privates, work_on_import, too_long)


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_is_in_order(root, check):
    assert check(root) == []


def add_cell(notebook: Path, source: str) -> None:
    nb = json.loads(notebook.read_text())
    nb["cells"].insert(-1, dict(cell_type="code", execution_count=None, id="0badcafe", metadata={}, outputs=[], source=source))
    notebook.write_text(json.dumps(nb))


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


PLANTED = {
    "a number used twice": (wrong_paths, lambda r: shutil.copy(r / "nbs/00_core/03_files.ipynb", r / "nbs/01_other.ipynb")),
    "a path that is not the module": (wrong_paths, lambda r: (r / "nbs/00_core").rename(r / "nbs/00_kernel")),
    "a module nobody exports": (wrong_paths, lambda r: (r / "gti_nb/stray.py").write_text("")),
    "an import of a later module": (upward_imports, lambda r: append(r / "gti_nb/core/files.py", "\nfrom ..text import encode_text\n")),
    "a lazy one": (upward_imports, lambda r: append(r / "gti_nb/core/files.py", "\ndef f():\n    from gti_nb.sid import codes\n")),
    "one for types only": (upward_imports, lambda r: append(r / "gti_nb/core/files.py", "\nif TYPE_CHECKING:\n    import gti_nb.cli\n")),
    "one in an example": (upward_imports, lambda r: add_cell(r / "nbs/00_core/03_files.ipynb", "from gti_nb.cli import main")),
    "a private name": (crossing_privates, lambda r: append(r / "gti_nb/cli.py", "\nfrom .core.hashes import _feed\n")),
    "a private attribute": (crossing_privates, lambda r: append(r / "gti_nb/cli.py", "\nfrom gti_nb.core import hashes\nhashes._feed\n")),
    "a call on import": (work_on_import, lambda r: append(r / "gti_nb/core/files.py", "\nprint('hello')\n")),
    "a decorator that registers": (work_on_import, lambda r: append(r / "gti_nb/core/files.py", "\n@register('x')\ndef f():\n    pass\n")),
    "an attribute set on import": (work_on_import, lambda r: append(r / "gti_nb/core/files.py", "\nGTIError.level = 3\n")),
    "a circle of benchmarks": (benchmark_circles, lambda r: append(r / "benchmarks/vectors.py", "\nfrom rqvae import rqvae\n")),
    "a long module": (too_long, lambda r: append(r / "gti_nb/core/files.py", "\n" * 400)),
}


@pytest.mark.parametrize("violation", PLANTED)
def test_a_planted_violation_is_seen(root, tmp_path, violation):
    check, plant = PLANTED[violation]
    for folder in ("nbs", PACKAGE, "tests", "benchmarks"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    before = check(tmp_path)
    plant(tmp_path)
    assert set(check(tmp_path)) - set(before)
