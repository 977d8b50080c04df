import io
from pathlib import Path

import pytest
from PIL import Image

from openklein.cli.images import check_output
from openklein.cli.main import main
from openklein.contract import MAX_REFERENCES
from openklein.engine.weights import installed
from openklein.errors import InvalidRequest

needs_klein_mini = pytest.mark.skipif(not installed("klein-mini", Path()), reason="klein-mini's weights are not there")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with one photo, and no settings of the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENKLEIN_DATA_DIR", str(tmp_path / "data"))
    Image.new("RGB", (256, 256), "white").save(tmp_path / "photo.png")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "  ", "-o", "a.png"], "the prompt is empty"),
        (["generate", "a cat", "-o", "a.jpg"], "-o a.jpg does not end in .png"),
        (["generate", "a cat", "-o", "nowhere/a.png"], "there is no folder nowhere"),
        (["edit", "lost.png", "make it red", "-o", "a.png"], "lost.png cannot be read: No such file or directory"),
        (["edit", ".", "make it red", "-o", "a.png"], ". cannot be read: Is a directory"),
        (["edit", "text.png", "make it red", "-o", "a.png"], "text.png: The file of 5 bytes is not a readable PNG"),
        (["edit", "tiny.png", "make it red", "-o", "a.png"], "tiny.png: The image is 8x8 pixels"),
        (["edit", "photo.png", "make it red", "-o", "photo.png"], "is one of the images to start from"),
        (["edit", "tiny.png", "both", "-i", "photo.png", "-o", "photo.png"], "is one of the images to start from"),
        (["edit", "photo.png", "", "-o", "a.png"], "the prompt is empty"),
        (
            ["edit", "photo.png", "all", "-o", "a.png", *["-i", "photo.png"] * MAX_REFERENCES],
            "5 images are given; at most 4 are allowed",
        ),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    (here / "text.png").write_text("hello")
    Image.new("RGB", (8, 8)).save(here / "tiny.png")
    before = (here / "photo.png").read_bytes()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("openklein: ")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (here / "a.png").exists()
    assert (here / "photo.png").read_bytes() == before


def test_a_file_over_the_limit_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENKLEIN_MAX_FILE_BYTES", "100")
    assert main(["edit", "photo.png", "make it red", "-o", "a.png"]) == 2
    assert "at most 100 are allowed" in capsys.readouterr().err


def test_a_link_to_the_photo_is_still_the_photo(here: Path) -> None:
    (here / "link.png").symlink_to("photo.png")
    with pytest.raises(InvalidRequest, match="one of the images to start from"):
        check_output(Path("link.png"), ("photo.png",))


def test_a_folder_is_not_an_output(here: Path) -> None:
    (here / "folder.png").mkdir()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        check_output(Path("folder.png"), ())


@needs_klein_mini
def test_a_full_disk_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (here / "a.png").symlink_to("/dev/full")
    assert main(["generate", "a cat", "-o", "a.png"]) == 1
    assert capsys.readouterr().err.endswith(
        "openklein: a.png cannot be written: No space left on device; free some space or give -o another place.\n"
    )


@needs_klein_mini
def test_the_same_seed_writes_the_same_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first.png", "second.png"):
        assert main(["generate", "a red apple", "-o", name, "--aspect", "square", "--seed", "7"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("first.png: 1024x1024, klein-mini, seed 7, ")
    assert "klein-mini stands in for flux2-klein-4b" in err
    first = (here / "first.png").read_bytes()
    assert first == (here / "second.png").read_bytes()
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size, image.text["seed"]) == ("PNG", (1024, 1024), "7")  # type: ignore[attr-defined]


@needs_klein_mini
def test_without_a_seed_each_run_differs_and_tells_its_seed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = []
    for _ in range(2):
        assert main(["generate", "a red apple", "-o", "apple.png", "--model", "klein-mini"]) == 0
        out, err = capsys.readouterr()
        assert "stands in" not in err
        seeds.append(out.partition("seed ")[2].partition(",")[0])
    assert seeds[0] != seeds[1]
    again = (here / "apple.png").read_bytes()
    assert main(["generate", "a red apple", "-o", "apple.png", "--seed", seeds[1]]) == 0
    assert (here / "apple.png").read_bytes() == again


@needs_klein_mini
def test_editing_reads_all_photos_and_keeps_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (300, 200), "red").save(here / "more.jpg")
    photo = (here / "photo.png").read_bytes()
    assert main(["edit", "photo.png", "side by side", "-i", "more.jpg", "-o", "both.png", "--seed", "1"]) == 0
    assert main(["edit", "photo.png", "side by side", "-o", "one.png", "--seed", "1"]) == 0
    assert "both.png: 1344x768, klein-mini, seed 1, " in capsys.readouterr().out
    assert (here / "both.png").read_bytes() != (here / "one.png").read_bytes()
    assert (here / "photo.png").read_bytes() == photo


@needs_klein_mini
def test_a_prompt_that_is_too_long_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "apple " * 2000, "-o", "a.png"]) == 2
    assert "500" in capsys.readouterr().err
    assert not (here / "a.png").exists()


@needs_klein_mini
def test_strict_model_refuses_the_stand_in(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENKLEIN_STRICT_MODEL", "true")
    assert main(["generate", "a red apple", "-o", "a.png"]) == 1
    assert "flux2-klein-4b is not installed in" in capsys.readouterr().err
