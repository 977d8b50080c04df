"""Write the parts of docs/ that follow from the code and from klein-mini's figures; `--check` only compares."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from openklein.cli.main import build_parser
from openklein.settings import Settings, env_name, flag_name

DOCS = Path(__file__).parent
RESTYLES = ("restyle", "restyle_by_name", "restyle_described")  # as training.edits asks for another style
ADD = ("add_right", "add_left", "add_below", "add_above", "add_front")
ADD_TO_FULL = ("add_to_full_right", "add_to_full_left", "add_to_full_below", "add_to_full_above")
REPLACE = ("replace_alone", "replace_of_two")
FIGURES = (  # what klein-mini's card calls it; its group; its names there; the goal
    ("one thing by its name alone: named first", "by_name", ("top_1",), None),
    ("within the judge's first five", "by_name", ("top_5",), None),
    ("one of the 300 commonest things so: named first", "common", ("top_1",), None),
    ("within the first five", "common", ("top_5",), None),
    ("one thing so in landscape, the default: named first", "by_name_landscape", ("top_1",), None),
    ("within the first five", "by_name_landscape", ("top_5",), None),
    ("one thing in a style it was shown in: named first", "seen", ("top_1",), 0.90),
    ("within the first five", "seen", ("top_5",), 0.97),
    ("nearest to itself in that style, of four", "seen", ("in_style",), None),
    ("one thing in a style it was never shown in: named first", "held_out", ("top_1",), 0.70),
    ("within the first five", "held_out", ("top_5",), 0.88),
    ("nearest to itself in that style", "held_out", ("in_style",), None),
    ("one thing by another word for it: within the first five", "synonyms", ("top_5",), 0.80),
    ("background colour right", "backgrounds", ("right",), 0.98),
    ("two things: both there", "pairs", ("both_present",), 0.85),
    ("two things: each on its side", "pairs", ("positions_right",), 0.85),
    ("one to four of a thing: counted right", "counts", ("right",), 0.80),
    ("so in landscape", "landscape_counts", ("right",), None),
    ("edits in the README's words: background", "plain_words", ("background",), 0.95),
    ("mirror, greyscale so", "plain_words", ("mirror", "greyscale"), 0.95),
    ("recolour, resize so", "plain_words", ("recolour", "resize"), None),
    ("rotate so", "plain_words", ("rotate",), 0.95),
    ("invert, brighten, darken, outline so", "plain_words", ("invert", "brighten", "darken", "outline"), None),
    ("add, remove, replace so", "plain_words", ("add", "remove", "replace"), 0.80),
    ("add where there is room: on the right, left, below, above", "plain_words", ADD[:4], None),
    ("where a thing fills the picture: on the right, left, below, above", "plain_words", ADD_TO_FULL, None),
    ("replace what is alone, one of two", "plain_words", REPLACE, None),
    ("another style so: of it, of the thing by its name, described", "plain_words", RESTYLES, None),
    ("background so, and the thing kept at 20 dB or more", "plain_words", ("coloured_and_kept",), 0.80),
    ("such edits in landscape, the default: background", "landscape_words", ("background",), None),
    ("mirror, greyscale", "landscape_words", ("mirror", "greyscale"), None),
    ("recolour, resize", "landscape_words", ("recolour", "resize"), None),
    ("add, remove, replace", "landscape_words", ("add", "remove", "replace"), None),
    ("another style: of it, of the thing by its name, described", "landscape_words", RESTYLES, None),
    ("edits in many words: background", "edits", ("background",), 0.95),
    ("mirror", "edits", ("mirror",), 0.95),
    ("rotate", "edits", ("rotate",), 0.95),
    ("greyscale", "edits", ("greyscale",), 0.95),
    ("invert, brighten, darken, outline", "edits", ("invert", "brighten", "darken", "outline"), None),
    ("recolour", "edits", ("recolour",), 0.95),
    ("move, resize", "edits", ("move", "resize"), None),
    ("another style: of it, of the thing by its name, described", "edits", RESTYLES, 0.80),
    ("skin tone, expression of a face", "edits", ("skin", "expression"), None),
    ("add, remove, replace", "edits", ("add", "remove", "replace"), 0.80),
    ("add where there is room: on the right, left, below, above, in front", "edits", ADD, None),
    ("where a thing fills the picture: on the right, left, below, above", "edits", ADD_TO_FULL, None),
    ("replace what is alone, one of two", "edits", REPLACE, None),
    ("several references: in a row, in a grid", "references", ("row", "grid"), 0.85),
    ("two, three, four in a row", "references", ("row_of_2", "row_of_3", "row_of_4"), None),
    ("one put into, above, on the background of another", "references", ("insert", "stack", "place"), 0.85),
    ("in landscape: in a row, in a grid", "landscape_references", ("row", "grid"), None),
    ("one put into, above, on the background of another", "landscape_references", ("insert", "stack", "place"), None),
    ("prompts in words no training prompt has used: named first", "held_out_words", ("caption_top_1",), None),
    ("edits in such words: background", "held_out_words", ("background",), None),
    ("mirror, greyscale", "held_out_words", ("mirror", "greyscale"), None),
    ("invert, brighten, darken", "held_out_words", ("invert", "brighten", "darken"), None),
    ("rotate, recolour, resize", "held_out_words", ("rotate", "recolour", "resize"), None),
    ("another style: of it, of the thing by its name", "held_out_words", ("restyle", "restyle_by_name"), None),
    ("add, remove, replace", "held_out_words", ("add", "remove", "replace"), None),
    ("thirty guided steps before distillation: named first", "teacher", ("top_1",), None),
)
BEGIN, END = "<!-- generated: make docs -->\n", "<!-- end of generated -->\n"


def main() -> int:
    stale = [path.name for path, text in pages().items() if path.read_text() != text]
    if "--check" in sys.argv[1:]:
        print(f"stale: {', '.join(stale)}; run make docs" if stale else "docs are up to date")
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text)
    return 0


def pages() -> dict[Path, str]:
    """Give each page as it should be: hand-written text around a generated part."""
    parts = {
        "settings.md": settings_table(),
        "cli.md": "\n".join(command_helps(build_parser())),
        "klein-mini.md": figures_table(),
    }
    return {DOCS / name: replace_part((DOCS / name).read_text(), part) for name, part in parts.items()}


def replace_part(page: str, part: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


def settings_table() -> str:
    rows = ["| variable | flag | default | what it is |", "| --- | --- | --- | --- |"]
    for row in fields(Settings):
        default = f"`{row.metadata['default']}`" if row.metadata["default"] else "none"
        rows.append(f"| `{env_name(row.name)}` | `{flag_name(row.name)}` | {default} | {row.metadata['help']} |")
    return "\n".join(rows) + "\n"


def figures_table() -> str:
    """Set klein-mini's figures beside their goals, and beside what true pictures would get."""
    measured, possible = (
        json.loads((DOCS / "klein-mini" / f"{name}.json").read_text()) for name in ("figures", "possible")
    )
    rows = ["| what | goal | klein-mini | true pictures |", "| --- | --- | --- | --- |"]
    for title, group, names, goal in (row for row in FIGURES if row[1] in measured):
        shares = (", ".join(f"{100 * report[group][name]:.0f}" for name in names) for report in (measured, possible))
        rows.append(f"| {title} | {f'{100 * goal:.0f}' if goal else ''} | {' | '.join(shares)} |")
    return "\n".join(rows) + "\n"


def command_helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Give the help of a command, then of its subcommands."""
    yield f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n"
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        for child in dict(action.choices or {}).values():
            yield from command_helps(child)


if __name__ == "__main__":
    sys.exit(main())
