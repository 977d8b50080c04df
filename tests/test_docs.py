"""Hold the documentation to the code: generated parts, links, commands, change log."""

import importlib.util
import re
from pathlib import Path

import pytest

from openklein import __version__

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_generated_parts_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = module.pages()
    assert {path.name for path in pages} == {"settings.md", "cli.md", "klein-mini.md"}
    for path, text in pages.items():
        assert path.read_text() == text, f"{path.name} is stale; run make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    lost = [target for target in targets if not (page.parent / target).exists()]
    assert not lost, f"{page.name} links to {lost}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_named_in_the_text_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = re.findall(r"```.*?```|`[^`]+`", page.read_text(), re.DOTALL)
    named = set(re.findall(r"^`?make ([a-z-]+)", "\n".join(code), re.MULTILINE))
    assert named <= targets, f"{page.name} names make {named - targets}"


def test_the_change_log_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == __version__


def test_the_page_of_attacks_names_every_test_of_them_and_none_that_is_not_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page))
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), (path, name)
    for path in re.findall(r"`((?:api|engine|cli|storage)/[\w/]+\.py)`", page):
        assert (ROOT / "src" / "openklein" / path).is_file(), path
    for path in ("tests/api/test_attacks.py", "tests/test_attack_surface.py"):
        tests = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(), re.MULTILINE)
        assert {name for name in tests if (path, name) not in named} <= {"test_the_scan_finds_what_it_looks_for"}
