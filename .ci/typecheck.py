"""Type-check the package with `ty`.

A class that grows by fastcore's `@patch` over several cells is opaque to a type checker. So the check runs on a copy
in which every patched function is a method in the body of its class.
"""

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def patch_kind(function: ast.FunctionDef) -> str | None:
    "The decorator that says the same inside a class; None for a function that is not patched."
    for decorator in function.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        name = call.func if call else decorator
        if isinstance(name, ast.Name) and name.id == "patch":
            options = {k.arg for k in call.keywords} if call else set()
            return "@property" if "as_prop" in options else "@classmethod" if "cls_method" in options else ""
    return None


def with_methods_in_place(source: str) -> str:
    "The module with every patched function moved into its class."
    tree, lines = ast.parse(source), source.splitlines()
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    moved: dict[str, list[str]] = {}
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        kind = patch_kind(function)
        if kind is None:
            continue
        owner = ast.unparse(function.args.args[0].annotation)
        if owner not in classes:
            print(f"{function.name}: patched into {owner}, which is a class of another module; write a function instead")
            continue
        first = min(d.lineno for d in function.decorator_list) - 1
        others = [lines[d.lineno - 1] for d in function.decorator_list if "patch" not in lines[d.lineno - 1]]
        body = lines[function.lineno - 1 : function.end_lineno]
        if kind == "@classmethod":
            body = [line.replace(f"cls: {owner}", "cls") for line in body]
        body[0:1] = [kind, *others, body[0]] if kind else [*others, body[0]]
        moved.setdefault(owner, []).extend("    " + line for line in body)
        lines[first : function.end_lineno] = [""] * (function.end_lineno - first)
    for owner, node in sorted(classes.items(), key=lambda item: -item[1].end_lineno):
        lines[node.end_lineno : node.end_lineno] = moved.get(owner, [])
    return "from __future__ import annotations\n" + "\n".join(lines) + "\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        for path in ROOT.glob("gti_nb/**/*.py"):
            copy = Path(folder) / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(with_methods_in_place(path.read_text()) if path.name != "_modidx.py" else path.read_text())
        ty = Path(sys.executable).with_name("ty")
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it would hide the copy
        command = [ty, "check", "gti_nb", "--python", sys.prefix, "--output-format", "concise"]
        return subprocess.run(command, cwd=folder, env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
