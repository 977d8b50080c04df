"""Phrasings that prompts are made of, read from `training/prompts`: lines of a kind and a phrasing, the plainest first.

Words in braces are what is asked for, such as {colour} and {thing}, or any of `WORDS` for what a phrase leaves open.
"""

from pathlib import Path

PROMPTS = Path(__file__).with_name("prompts")


def read_phrases(file: Path) -> dict[str, tuple[str, ...]]:
    """List the phrasings of each kind."""
    phrases: dict[str, tuple[str, ...]] = {}
    for line in file.read_text("utf-8").splitlines():
        kind, _, phrase = line.partition(" | ")
        phrases[kind] = (*phrases.get(kind, ()), phrase)
    return phrases


EDITS, CAPTIONS, WORDS = (read_phrases(PROMPTS / "said" / f"{name}.txt") for name in ("edits", "captions", "words"))
