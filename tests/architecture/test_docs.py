"""Pages that lead somewhere: links, paths and names in the documentation exist."""

import re

import pytest
from source_tree import REPOSITORY

PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
MAX_README_LINES = 100
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
REPOSITORY_PATH = re.compile(r"`((?:configs|docs|efficient_rollout|requirements|scripts|tests)/[\w./-]+)`")
DOTTED = re.compile(r"`(efficient_rollout(?:\.[a-z_]+)+\.[A-Za-z_]\w*(?:\.\w+)?)`")


def names_nothing(dotted: str) -> bool:
    """Whether a dotted name is in no module of the package, read without importing it."""
    *path, name = dotted.split(".")
    for length in range(len(path), 0, -1):
        module = REPOSITORY.joinpath(*path[:length]).with_suffix(".py")
        if module.is_file():
            text = module.read_text(encoding="utf-8")
            definition = r"^\s*(?:(?:async )?(?:def|class) {0}\b|{0}: )"
            wanted = [re.compile(definition.format(part), re.MULTILINE) for part in (*path[length:], name)]
            return not all(pattern.search(text) for pattern in wanted)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_code_exist(page):
    assert [name for name in DOTTED.findall(page.read_text(encoding="utf-8")) if names_nothing(name)] == []


def test_a_name_that_does_not_exist_is_seen():
    assert not names_nothing("efficient_rollout.cost_model.latency.LatencyModel.tick_seconds")
    assert names_nothing("efficient_rollout.cost_model.latency.LatencyModel.tick_second")
    assert names_nothing("efficient_rollout.cost_model.late.LatencyModel")
    assert LINK.search("see [x](no/such.md)")
    assert REPOSITORY_PATH.search("in `docs/none.md`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if "://" not in link and not (page.parent / link).exists()]
    missing += [path for path in REPOSITORY_PATH.findall(text) if not (REPOSITORY / path).exists()]
    assert missing == []


def test_the_index_lists_every_page():
    listed = {link for link in LINK.findall((REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8"))}
    pages = {str(page.relative_to(REPOSITORY / "docs")) for page in PAGES[1:]} - {"index.md"}
    assert pages - listed == set()


def test_readme_is_short():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES
