"Pages and chapters link only to what is there."

import json
import re
from pathlib import Path

LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(?:#[^)]*)?\)")


def links(path: Path) -> list[str]:
    "Targets inside the project that a page or the prose of a notebook links to."
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    return LINK.findall(text)


def test_every_link_leads_somewhere(root):
    pages = [p for pattern in ("*.md", "docs/*.md", "studies/**/*.md", "outputs/*.md", "nbs/**/*.ipynb") for p in root.glob(pattern)]
    assert len(pages) > 80
    broken = [f"{page.relative_to(root)}: {target}" for page in pages for target in links(page) if not (page.parent / target).exists()]
    assert broken == []


def test_a_broken_link_would_be_seen(tmp_path):
    (tmp_path / "page.md").write_text("[there](page.md#part), [not there](gone.md), [elsewhere](https://example.org)")
    assert links(tmp_path / "page.md") == ["page.md", "gone.md"]


def test_every_test_that_the_table_of_faults_names_exists(root):
    lines = [line for line in (root / "docs/faults.md").read_text().splitlines() if re.match(r"\| \d", line)]
    assert [line.split()[1] for line in lines] == [str(n) for n in range(1, 30)]
    for name in [name for line in lines for name in re.findall(r"`(.+?)`", line.split(" | ")[-1])]:
        file, _, test = name.partition("::")
        path = root / "tests" / file
        assert path.exists() and (not test or f"def {test}(" in path.read_text()), name
