"""Pages whose examples are carried out: their blocks of code, and their diffs applied."""

import re
from pathlib import Path


def code_blocks(page: Path, language: str) -> list[str]:
    """Texts of a page's fenced blocks of this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def hunks(diff: str) -> tuple[Path, list[tuple[str, str]]]:
    """The file a diff changes, and pairs of the old lines it expects there and the new ones."""
    header, *bodies = diff.split("@@\n")
    name = re.search(r"^--- a/(\S+)$", header, re.MULTILINE).group(1)
    pairs = []
    for body in bodies:
        lines = body.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        pairs.append((old, new))
    return Path(name), pairs


def apply(diff: str, root: Path) -> Path:
    """Carry a diff out below a folder; the file it changed, relative to it."""
    name, pairs = hunks(diff)
    text = (root / name).read_text()
    for old, new in pairs:
        assert text.count(old) == 1, f"the page changes lines that {name} does not have once:\n{old}"
        text = text.replace(old, new)
    (root / name).write_text(text)
    return name
