"""Write the parts of docs/settings.md and docs/cli.md that follow from the code; `--check` only compares."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from openklein.cli.main import build_parser
from openklein.settings import Settings, env_name, flag_name

DOCS = Path(__file__).parent
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
    parts = {"settings.md": settings_table(), "cli.md": "\n".join(command_helps(build_parser()))}
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


def command_helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Give the help of a command, then of its subcommands."""
    yield f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n"
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        for child in dict(action.choices or {}).values():
            yield from command_helps(child)


if __name__ == "__main__":
    sys.exit(main())
