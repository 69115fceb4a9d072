"""A picture of one section of a report, as a browser shows it: `scripts/picture.py PAGE SECTION OUT.png`.

The pictures at the end of docs/verl.md and docs/openrlhf.md were made so. It needs Chromium, and Pillow.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WIDTH, _MOST_PANELS = 760, 2
# What is not of the section, and what of it would make the picture long.
_STYLE = """<style>
header, section:not(#{key}), #{key} .note, #{key} details, #{key} > .panel:not(:nth-last-child(-n + {most}))
{{ display: none !important; }} body {{ padding: 0 1rem; }} section {{ border: 0; padding: 0.5rem 0; }}</style>"""
# Height of what is shown, once everything is drawn.
_PROBE = "<script>addEventListener('load', () => setTimeout(() => {{ document.title = {height}; }}, 1000));</script>"


def _run(browser: str, folder: Path, page: Path, *arguments: str) -> str:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    command = [browser, *options, f"--user-data-dir={folder / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(page: Path, key: str, out: Path) -> None:
    """Write the picture: the section's heading, its answer and its last figures."""
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        sys.exit(f"a picture needs a browser: none of {', '.join(_NAMES)} is installed")
    text = page.read_text(encoding="utf-8")
    if f'<section id="{key}">' not in text:
        sys.exit(f"{page} has no section {key!r}")
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "page.html"
        height = "document.documentElement.scrollHeight"
        shown = text.replace("</head>", _STYLE.format(key=key, most=_MOST_PANELS) + "</head>", 1)
        copy.write_text(shown.replace("</body>", _PROBE.format(height=height) + "</body>"), encoding="utf-8")
        told = _run(browser, Path(name), copy, f"--window-size={_WIDTH},100", "--dump-dom")
        pixels = told.split("<title>", 1)[1].split("</title>", 1)[0]
        _run(browser, Path(name), copy, f"--window-size={_WIDTH},{pixels}", f"--screenshot={out.resolve()}")
    # Flat colours: a palette of few has a third of the bytes.
    Image.open(out).convert("RGB").quantize(48).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
