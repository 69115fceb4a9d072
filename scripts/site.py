"""mkdocs' hooks: pages that stand outside docs/, and links that hold in the checkout as well as on the site."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)((?:#[^)\s]*)?)\)")


def _pages() -> dict[str, str]:
    """Place on the site by place in the checkout, of pages from outside docs/."""
    found = {"README.md": "get_started.md", "CHANGELOG.md": "changelog.md"}
    recipes = (str(path.relative_to(REPOSITORY)) for path in sorted((REPOSITORY / "recipes").glob("*/README.md")))
    return found | {path: path for path in recipes}


def on_files(files: Files, config: Any) -> Files:
    """Add them."""
    for source, place in _pages().items():
        text = _moved((REPOSITORY / source).read_text(encoding="utf-8"), source, place)
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of the pages in docs/."""
    place = page.file.src_uri
    return markdown if place in _pages().values() else _moved(markdown, f"docs/{place}", place)


def _moved(text: str, source: str, place: str) -> str:
    """Each link of a page by where it leads on the site; of what the site does not have, its words alone."""
    return "".join(_pieces(text, source, place))


def _pieces(text: str, source: str, place: str) -> Iterator[str]:
    end = 0
    for link in LINK.finditer(text):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        there = _pages().get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        yield text[end : link.start()]
        if there is None:
            yield f"] (`{target}` in the checkout)"
        else:
            yield f"]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{link[2]})"
        end = link.end()
    yield text[end:]
