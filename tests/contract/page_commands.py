"""The commands of this package that stand on the pages, as lists of arguments."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = (
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "recipes").glob("*/README.md")),
)
FENCED = re.compile(r"^ *(`{3,}|~{3,})([^\n`]*)\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^#.*\n|(?<=\n\n))((?: {4}.*\n)+)", re.MULTILINE)
SPAN = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")
PROGRAM = re.compile(r"(?:.*/bin/)?efficient-rollout")
MENTIONED = re.compile(r"efficient-rollout\s|-m\s+efficient_rollout")
MODULES = {"efficient_rollout": (), "efficient_rollout.openrlhf_plugin": ("openrlhf",)}
ELLIPSIS = "..."


@dataclass(frozen=True, slots=True)
class Command:
    """The arguments of one on a page, relative to the repository.

    A whole one can be given as it stands; another is named in a sentence, or leaves something out.
    """

    page: str
    arguments: tuple[str, ...]
    is_whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.arguments)}"


def commands_of(page: Path) -> list[Command]:
    """Every command of a page once, those of code blocks first."""
    return list(dict.fromkeys(commands_of_text(str(page.relative_to(REPOSITORY)), page.read_text(encoding="utf-8"))))


def commands_of_text(name: str, text: str) -> Iterator[Command]:
    """Every command in a page's text, those of code blocks first."""
    prose = FENCED.sub("", text)
    blocks = [block for _, language, code in FENCED.findall(text) for block in _sides(language.strip(), code)]
    for block in [*blocks, *INDENTED.findall(prose)]:
        for line in block.replace("\\\n", " ").splitlines():
            for arguments in commands_in(line):
                yield Command(name, _said(arguments), is_whole=ELLIPSIS not in arguments)
    for span in SPAN.findall(INDENTED.sub("", prose)):
        for arguments in commands_in(span):
            yield Command(name, _said(arguments), is_whole=False)


def _sides(language: str, code: str) -> tuple[str, ...]:
    """A block's texts: of a change, what was there and what is there now."""
    if language != "diff":
        return (code,)
    lines = code.splitlines(keepends=True)
    return tuple("".join(line[1:] for line in lines if not line.startswith(other)) for other in "+-")


def commands_in(line: str) -> list[tuple[str, ...]]:
    """Arguments of every command of this package in a line of shell.

    The program may stand behind assignments, or behind one that starts others, such as `srun`. A name that nothing
    follows is that of the package.
    """
    # Other text need not be shell, whose quotes come in pairs.
    if not MENTIONED.search(line):
        return []
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    tokens, found = list(lexer), []
    for index, token in enumerate(tokens):
        if PROGRAM.fullmatch(token):
            first: tuple[str, ...] = ()
        elif index and tokens[index - 1] == "-m" and token.partition(".")[0] == "efficient_rollout":
            first = MODULES[token]
        else:
            continue
        arguments = (*first, *_up_to_its_end(tokens[index + 1 :]))
        found += [arguments] if arguments else []
    return found


def _up_to_its_end(tokens: list[str]) -> list[str]:
    """What stands before a pipe, a redirection with the number of its stream, or the next command."""
    for index, token in enumerate(tokens):
        if set(token) <= set("();<>|&"):
            has_stream = token[0] in "<>" and index > 0 and tokens[index - 1].isdecimal()
            return tokens[: index - has_stream]
    return tokens


def _said(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Without what stands for any others, and a number for each variable of the shell."""
    return tuple(re.sub(r"\$\{?\w+\}?", "1", each) for each in arguments if each not in (ELLIPSIS, "$@"))
