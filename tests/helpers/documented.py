"""What the pages show: their blocks of code, and the commands in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "data/README.md",
    "tests/cluster/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
)

RUN = ("sh", "console", "python")
"""Languages of blocks that are run."""

SHOWN = ("text", "json", "toml")
"""Languages of blocks that a reader looks at: outputs and files."""


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: str
    line: int
    """Of its first line, from 1."""
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where to look for it."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name under which a reader saves it, where its first line is one.

        >>> Block("a.md", 1, "toml", "# job.toml: of two nodes").file
        'job.toml'
        """
        found = re.match(r"# ([\w./-]+\.\w+)(:.*)?$", self.text, flags=re.MULTILINE)
        return found[1] if found else None

    @property
    def commands(self) -> list["Command"]:
        """Those of a block of shell, a line each, without comments."""
        text, at = self.text.splitlines(), 0
        found = []
        while at < len(text):
            first = at
            words = text[at]
            while words.endswith("\\"):
                at += 1
                words = words[:-1].rstrip() + " " + text[at].strip()
            at += 1
            if self.language == "console":
                if not words.startswith("$ "):
                    continue
                words = words[2:]
            words = re.sub(r"(^|\s+)#.*", "", words)
            if not words:
                continue
            said = []
            if self.language == "console":
                while at < len(text) and not text[at].startswith("$ "):
                    said.append(text[at])
                    at += 1
            found.append(Command(self.page, self.line + first, words, "\n".join(said)))
        return found


@dataclass(frozen=True)
class Command:
    """A line of shell as a page shows it, its continuation lines joined."""

    page: str
    line: int
    text: str
    output: str = ""
    """What the page says that it prints, where it shows it below the command."""

    @property
    def place(self) -> str:
        """Where to look for it."""
        return f"{self.page}:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    """Every block of code of a page, fenced or indented, in order."""
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            language = token.info.split()[0] if token.info else ""
            line = token.map[0] + (2 if token.type == "fence" else 1)
            yield Block(page, line, language, token.content)
