"""The `sh` blocks of a document, with the note before each: `<!-- run: … -->`. Shared by the
programs that type a document's blocks as its reader would."""
import re

BLOCK = re.compile(r"(?:<!-- run: ([^\n]*?) -->\n+)?```sh\n(.*?)```", re.S)


def of(path: str) -> list[tuple[str, str]]:
    """Pairs of note (empty: none) and code, in the document's order."""
    text = open(path, encoding="utf-8").read()
    found = BLOCK.findall(text)
    if len(found) < 3 or len(found) != len(re.findall(r"^```sh$", text, re.M)):
        raise SystemExit(f"{path}: {len(found)} blocks: was it understood?")
    return found


def is_left_out(note: str) -> bool:
    """The note says that nobody can run the block here, and why."""
    return note.startswith("no, because ")


def typed(code: str) -> list[str]:
    """The block as a reader types it, but for stopping at the first command that fails."""
    return ["bash", "-euo", "pipefail", "-c", code]
