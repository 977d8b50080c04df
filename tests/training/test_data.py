"""Check how sprites are named and cut."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import data
from training.data import SPRITE_PX, draw_sprite, read_concepts, slug, trim


def test_slug_spells_labels_as_the_icon_sets_do() -> None:
    assert slug("one o’clock") == "one-oclock"
    assert slug("T-Rex") == "t-rex"
    assert slug("woman’s hat (old)") == "womans-hat-old"


def test_trim_fills_the_square_and_keeps_the_shape() -> None:
    picture = Image.new("RGBA", (100, 100))
    picture.paste((255, 0, 0, 255), (10, 30, 50, 50))
    sprite = np.asarray(trim(picture))
    rows, columns = np.nonzero(sprite[..., 3] > 128)
    assert sprite.shape == (SPRITE_PX, SPRITE_PX, 4)
    assert columns.max() - columns.min() == SPRITE_PX - 1
    assert abs((rows.max() - rows.min()) / SPRITE_PX - 0.5) < 0.02
    assert abs(rows.mean() - SPRITE_PX / 2) < 2


def test_a_sprite_is_drawn_from_its_package_and_trimmed(tmp_path: Path) -> None:
    body = '<rect x="2" y="6" width="4" height="4" fill="#f00"/>'
    (tmp_path / "icons.json").write_text(json.dumps({"icons": {"box": {"body": body}}}))
    sprite = draw_sprite(tmp_path, "box")
    assert sprite.shape == (SPRITE_PX, SPRITE_PX, 4)
    assert sprite[8:-8, 8:-8].reshape(-1, 4).min(0).tolist() == [255, 0, 0, 255]


def test_concepts_have_labels_and_aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CONCEPTS_FILE", tmp_path / "concepts.txt")
    data.CONCEPTS_FILE.write_text("# a comment\nautomobile | car, motor car\ndog\nbaby | | skin\n")
    car, dog, baby = read_concepts()
    assert (car.label, car.aliases, dog.aliases) == ("automobile", ("car", "motor car"), ())
    assert (car.varies, baby.aliases, baby.varies) == ("", (), "skin")


def test_a_thousand_concepts_have_no_twins() -> None:
    labels = [concept.label for concept in read_concepts()]
    assert len(labels) >= 1000
    assert len(set(labels)) == len(labels)
