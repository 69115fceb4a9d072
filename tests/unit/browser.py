"""A headless browser that looks at a page, and tells what it drew."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TIMEOUT_S, _PAGE_MILLISECONDS = 120, 20_000
# Chromium's setting for `prefers-color-scheme`.
_SCHEMES = {"dark": 0, "light": 1}

# Runs before the page's own scripts, which may fail.
_HEAD = "<script>window.faults = []; addEventListener('error', (event) => window.faults.push(event.message));</script>"
_PROBE = """<script>
const MOUSE = ["mousemove", "mousedown", "mouseup"];
addEventListener("load", () => setTimeout(() => {
  const figure = window.clickOn && document.querySelector(window.clickOn + " .nsewdrag");
  const box = figure ? figure.getBoundingClientRect() : null;
  const at = box && { bubbles: true, clientX: box.left + box.width / 2, clientY: box.bottom - 3 };
  if (box) MOUSE.forEach((type) => figure.dispatchEvent(new MouseEvent(type, at)));
}, 300));
addEventListener("load", () => setTimeout(() => {
  const count = (one, selector) => one.querySelectorAll(selector).length;
  const rectangle = (one) => one.getBoundingClientRect();
  const wide = [...document.querySelectorAll("body *, .main-svg")].filter(
    (one) => rectangle(one).width > 0 && rectangle(one).right > document.documentElement.clientWidth + 1);
  const sections = {};
  for (const one of document.querySelectorAll("section[id]")) {
    sections[one.id] = {
      figures: count(one, ".main-svg .cartesianlayer"), bars: count(one, ".bars .point path"),
      lines: count(one, ".scatterlayer .js-line"), gaps: count(one, ".gap"), text: one.innerText };
  }
  parent.postMessage({
    faults: window.faults, marked: window.marked === true, sections,
    overflow: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    wide: wide.map((one) => one.outerHTML.slice(0, 80)),
    back: getComputedStyle(document.body).backgroundColor,
    text: getComputedStyle(document.body).color,
    ticks: [...new Set([...document.querySelectorAll(".xtick text, .ytick text, .legend text")].map(
      (one) => getComputedStyle(one).fill))],
    legends: [...document.querySelectorAll(".legendtext")].map((one) => one.textContent),
    images: count(document, "img, iframe, object, embed"),
    place: location.hash, marks: [...document.querySelectorAll("[id]")].filter(
      (one) => one.matches(".panel") && count(one, ".shapelayer path")).map((one) => one.id),
  }, "*");
}, 800));
</script>"""
_FRAME = """<body style="margin: 0"><iframe src="{name}" style="border: 0; width: {width}px; height: 2000px"></iframe>
<pre id="probe"></pre><script>
addEventListener("message", (event) => document.getElementById("probe").textContent = JSON.stringify(event.data));
</script>"""


def browser() -> str:
    """The command of a browser; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"no browser to look with: none of {', '.join(_NAMES)} is installed")
    return found


def look_at(page: Path, folder: Path, *, width: int, scheme: str, click: str = "") -> dict[str, Any]:
    """What a browser drew, and what went wrong.

    Args:
        page: An HTML file.
        folder: An empty one for copies.
        width: Of the page, in CSS pixels. It stands in a frame, as a window cannot be narrower than 500.
        scheme: "light" or "dark".
        click: Selector of what holds a figure that is clicked first, in the middle of its horizontal axis.
    """
    copy = folder / "copy.html"
    text = page.read_text(encoding="utf-8")
    head = f"<head>{_HEAD}<script>window.clickOn = {json.dumps(click)}</script>"
    copy.write_text(text.replace("<head>", head, 1).replace("</body>", _PROBE + "</body>"))
    frame = folder / "frame.html"
    frame.write_text(_FRAME.format(name=copy.name, width=width))
    dom = run_browser(
        f"--window-size={max(width, 500)},2000",
        f"--blink-settings=preferredColorScheme={_SCHEMES[scheme]}",
        "--dump-dom",
        frame.as_uri(),
        profile=folder / "profile",
    )
    probe = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert probe is not None
    assert probe[1], "the page never told what it drew"
    told: dict[str, Any] = json.loads(html.unescape(probe[1]))
    return told


def run_browser(*arguments: str, profile: Path) -> str:
    """Run the browser once; its standard output."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", f"--virtual-time-budget={_PAGE_MILLISECONDS}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    return done.stdout


def contrast(first: str, second: str) -> float:
    """Contrast of two CSS colours as the accessibility guidelines define it: 4.5 is what text needs."""
    lighter, darker = sorted((_luminance(colour) for colour in (first, second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
