import os
import subprocess
import sys

import pytest

from openklein import contract


def test_the_documented_resolutions() -> None:
    assert contract.RESOLUTIONS == {
        "square": (1024, 1024),
        "landscape": (1344, 768),
        "portrait": (768, 1344),
        "photo": (1248, 832),
        "photo_v": (832, 1248),
        "standard": (1184, 896),
        "standard_v": (896, 1184),
        "wide": (1568, 672),
    }


def test_the_documented_defaults() -> None:
    assert contract.DEFAULT_MODEL == "flux2-klein-4b"
    assert contract.DEFAULT_MODEL in contract.MODEL_IDS
    assert contract.BASE_MODEL not in contract.MODEL_IDS
    assert contract.RESOLUTIONS[contract.DEFAULT_ASPECT_RATIO] == (1344, 768)
    assert contract.MAX_REFERENCES == 4


@pytest.mark.parametrize(
    ("references", "workflow"),
    [
        (0, "text-to-image"),
        (1, "image-to-image"),
        (2, "multi-reference"),
        (3, "multi-reference"),
        (4, "multi-reference"),
    ],
)
def test_the_number_of_references_selects_the_workflow(references: int, workflow: str) -> None:
    assert contract.select_workflow(references) == workflow


@pytest.mark.parametrize("size", contract.RESOLUTIONS.values(), ids=str)
def test_every_resolution_is_made_of_whole_tokens(size: tuple[int, int]) -> None:
    assert size[0] % 16 == 0 and size[1] % 16 == 0


def test_it_imports_nothing_heavy() -> None:
    code = "import sys, openklein.contract; print(sorted({'torch', 'numpy', 'PIL', 'fastapi'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
