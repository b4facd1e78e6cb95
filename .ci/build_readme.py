"README.md from nbs/index.ipynb: markdown as it is, code with its saved outputs, nothing hidden, links seen from the top folder."

import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s]+)(\))")  # [text](target), ![alt](target) with a target inside the project
DIRECTIVE = re.compile(r"^#\|[ \t]*(.+)$", re.M)


def readme(notebook: Path) -> str:
    nb = nbformat.read(notebook, 4)
    cells = []
    for cell in nb.cells:
        directives = {d.strip() for d in DIRECTIVE.findall(cell.source)}
        if cell.cell_type == "raw" or "hide" in directives:
            continue
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda m: m[1] + posixpath.normpath(posixpath.join("nbs", m[2])) + m[3], cell.source)
        else:
            cell.source = DIRECTIVE.sub("", cell.source).strip()
        cells.append(cell)
    nb.cells = cells
    nb.metadata["language_info"] = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(nb)
    if resources.get("outputs"):
        sys.exit(f"{notebook}: pictures in outputs do not fit in README.md; save them under nbs/images and link them")
    text = re.sub(r"<style scoped>.*?</style>\n", "", text, flags=re.S)  # pandas' own, which a README page shows as text
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(ROOT / "nbs/index.ipynb"))
