"""Markdown as the tests read it: fenced blocks, inline code, links, headings."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
ALL = [README, ROOT / "CHANGELOG.md", *DOCS]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and where it begins."""

    language: str
    text: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, remarks taken off; continued ones joined."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line for raw in joined if (line := re.sub(r"(^|\s)# .*$", "", raw).strip())]


def blocks(file: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a file, of these languages or all."""
    text = file.read_text()
    found = [
        Block(match[1], match[2], file, text.count("\n", 0, match.start()) + 1)
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    ]
    return [block for block in found if not languages or block.language in languages]


def prose(file: Path) -> str:
    """A file without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.M | re.S)


def inline_code(file: Path) -> list[str]:
    """What stands between single backticks."""
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose(file))]


def links(file: Path) -> list[str]:
    """Where links go."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(file))


def anchors(file: Path) -> set[str]:
    """What a link to a heading may say."""
    titles = re.findall(r"^#+ (.+)$", prose(file), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
