"""Write the reference pages from the code: settings, metrics, and what engines tell Prometheus.

    .venv/bin/python scripts/reference.py

Each table stands between two markers in its page; everything outside them is written by hand.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from efficient_rollout.config import Settings
from efficient_rollout.metrics.names import PREFIX, all_exported, all_metrics

DOCS = Path(__file__).parents[1] / "docs"
TABLE = re.compile(r"(<!-- generated: scripts/reference.py -->\n).*?(<!-- end of generated -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Each page with its table renewed, by its file."""
    return {
        DOCS / name: TABLE.sub(lambda markers, rows=rows: f"{markers[1]}\n{rows}\n{markers[2]}", _read(DOCS / name))
        for name, rows in (("settings.md", _settings()), ("metrics.md", _metrics()), ("prometheus.md", _exported()))
    }


def _read(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if not TABLE.search(text):
        raise SystemExit(f"{path} has no markers for its table")
    return text


def _table(titles: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _settings() -> str:
    return _table(("setting", "default", "legal", "meaning"), _settings_of(Settings.model_json_schema()))


def _settings_of(schema: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    def walk(group: Mapping[str, Any], prefix: str) -> Iterator[Sequence[str]]:
        for name, item in group["properties"].items():
            reference = item.get("$ref")
            if reference is not None:
                yield from walk(schema["$defs"][reference.rpartition("/")[2]], f"{prefix}{name}.")
                continue
            default = "unset" if item.get("default") is None else f"`{_value(item['default'])}`"
            yield f"`{prefix}{name}`", default, _legal(item), item["description"]

    return walk(schema, "")


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _legal(item: Mapping[str, Any]) -> str:
    """What the schema says of a value, of the one that is not null where null is legal."""
    (kind,) = [kind for kind in item.get("anyOf", [item]) if kind.get("type") != "null"]
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{word} {kind[key]:g}" for key, word in words.items() if key in kind]
    names = {"boolean": "`true`, `false`", "integer": "whole number", "number": "number", "string": "text"}
    return " ".join([names[kind["type"]], *bounds])


def _metrics() -> str:
    rows = ((f"`{one.name.removeprefix(PREFIX)}`", one.unit, one.meaning, one.good or "-") for one in all_metrics())
    return _table(("name", "unit", "meaning", "good"), rows)


def _exported() -> str:
    rows = (
        (f"`{one.sample}`" + (f" by `{one.label}`" if one.label else ""), one.kind, one.unit, one.meaning)
        for one in all_exported().values()
    )
    return _table(("family", "kind", "unit", "meaning"), rows)


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
