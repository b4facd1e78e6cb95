"""Free the number of a chapter: it and all later chapters of its room move up by one, and links to them follow.

python .ci/free_number.py nbs/03_data/10_sources.ipynb
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def later_chapters(chapter: Path) -> list[Path]:
    "The chapter and those after it in its folder, the last one first."
    siblings = chapter.parent.glob("[0-9][0-9]_*")
    return sorted((p for p in siblings if p.name[:2] >= chapter.name[:2]), reverse=True)


def moved_links(text: str, page: Path, old: Path, new: Path) -> str:
    "The text of a page with its links to `old` leading to `new`."

    def follow(link: re.Match) -> str:
        target = (page.parent / link[1]).resolve()
        return link[0].replace(old.name, new.name) if target == old else link[0]

    return re.sub(r"\]\(([^)\s#]+)", follow, text)


def main(chapter: str) -> None:
    path = (ROOT / chapter).resolve()
    if not path.exists() or not re.match(r"\d\d_", path.name):
        sys.exit(f"{chapter}: no such chapter; name the one whose number is to be free, such as nbs/03_data/10_sources.ipynb")
    for old in later_chapters(path):
        new = old.with_name(f"{int(old.name[:2]) + 1:02d}{old.name[2:]}")
        for page in [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("*.md"), *ROOT.glob("studies/**/*.md")]:
            text = page.read_text()
            changed = moved_links(text, page, old, new)
            if changed != text:
                page.write_text(changed)
        subprocess.run(["git", "mv", old, new], cwd=ROOT, check=True)
        print(f"{old.name} -> {new.name}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
