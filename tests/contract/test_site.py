"""The documentation as a site: built without a warning, and whole without any other host."""

import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

OTHER_HOST = r"[\"']?(?:https?:)?//"
LOADED = re.compile(
    rf"<(?:script|img|iframe|source)\b[^>]*\bsrc={OTHER_HOST}"
    rf"|<link\b[^>]*\brel=[\"']?(?:stylesheet|preload)[^>]*\bhref={OTHER_HOST}"
)
QUOTED = re.compile(r"^\| `([^`]+)`", re.MULTILINE)
# Of messages that others print: package, file in it, and the text there.
OTHERS = {
    "Missing authentication token": (
        "ray", "_private/authentication/http_token_authentication.py", "Missing authentication token",
    ),
    "RotaryEmbedding: Failed to load weights": (
        "vllm", "model_executor/model_loader/reload/layerwise.py", "%s: Failed to load weights",
    ),
    "min_p and logit_bias parameters won't work with speculative decoding": (
        "vllm", "v1/sample/logits_processor/__init__.py", "parameters won't work with speculative decoding",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_page_is_there(site, repository):
    names = [path.stem for path in (repository / "docs").glob("*.md")] + ["get_started", "changelog"]
    missing = [name for name in names if name != "index" and not (site / name / "index.html").is_file()]
    missing += [
        str(path)
        for path in (repository / "recipes").glob("*/README.md")
        if not (site / "recipes" / path.parent.name / "index.html").is_file()
    ]
    assert missing == []
    assert (site / "index.html").is_file()


def test_no_page_loads_anything_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    assert [page for page in pages if LOADED.search(page.read_text(encoding="utf-8"))] == []
    assert LOADED.search('<script src="https://cdn.example/x.js">')
    assert LOADED.search('<link rel="stylesheet" href="//fonts.example/x.css">')


def test_links_lead_to_pages_of_the_site(site):
    recipes = (site / "recipes" / "index.html").read_text(encoding="utf-8")
    assert 'href="grpo_quickstart/"' in recipes
    quickstart = (site / "recipes" / "grpo_quickstart" / "index.html").read_text(encoding="utf-8")
    assert 'href="../../task/"' in quickstart
    assert 'href="recipes/"' in (site / "index.html").read_text(encoding="utf-8")


def test_the_references_are_what_the_code_says(repository):
    for path, text in runpy.run_path(str(repository / "scripts" / "reference.py"))["pages"]().items():
        assert path.read_text(encoding="utf-8") == text, "run .venv/bin/python scripts/reference.py"
        assert text.count("\n| `") > 10


def test_every_message_that_is_quoted_is_in_the_sources(repository):
    page = (repository / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    paths = (repository / "efficient_rollout").rglob("*.py")
    folded = [re.sub(r"\s+", " ", path.read_text(encoding="utf-8")) for path in paths]
    # Strings that go on in the next line are one.
    sources = "\n".join(re.sub(r'" f?"', "", text) for text in folded)
    messages = [quoted for quoted in QUOTED.findall(page) if " " in quoted]
    assert len(messages) > 10
    known = {"Unknown rollout mode: efficient_vllm": "Unknown rollout mode: {ROLLOUT_NAME}"}
    own = [message for message in messages if message not in OTHERS]
    assert [message for message in own if known.get(message, message) not in sources] == []
    assert set(OTHERS) <= set(messages)


@pytest.mark.parametrize("message", OTHERS)
def test_a_message_of_others_is_in_their_sources(message):
    package, file, text = OTHERS[message]
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    assert text in (Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8")
