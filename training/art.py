"""Collect further art and photographs for the autoencoder, so that it keeps what was never drawn by klein-mini.

The photographs are files of scikit-image and scikit-learn; `pip install --no-deps` is enough.
`python -m training.art --work FOLDER` leaves in FOLDER:
  art.npy                uint8 (pictures, SPRITE_PX, SPRITE_PX, 4), straight alpha
  photos/                photographs whose licences were read, as PNG
  art_sources.json       package, licence and author of every source
"""

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.data import SPRITE_PX, VectorSet, describe_source, fetch, render_svg, trim

ICON_SETS = (
    "@iconify-json/fluent-emoji@1.2.7",
    "@iconify-json/fxemoji@1.2.2",
    "@iconify-json/flat-color-icons@1.2.3",
)
CLIP_ART = Path("/usr/share/openclipart/svg")  # Debian's openclipart-svg, CC0
CLIP_ART_COUNT = 600
MAX_SVG_BYTES = 300_000
PHOTOS = {  # licences as the notes in skimage.data and scikit-learn's datasets/images/README.txt give them
    "astronaut.png": "public domain (NASA)",
    "chelsea.png": "CC0 (Stefan van der Walt)",
    "coffee.png": "CC0 (Rachel Michetti)",
    "rocket.jpg": "public domain (SpaceX)",
    "hubble_deep_field.jpg": "public domain (NASA)",
    "grass.png": "CC0",
    "gravel.png": "CC0",
    "brick.png": "CC0",
    "china.jpg": "CC BY 2.0 (danielbuechele)",
    "flower.jpg": "CC BY 2.0 (vultilion)",
}
HELD_OUT_PHOTOS = ("coffee.png", "flower.jpg", "rocket.jpg")  # for honest figures


def icons(work: Path) -> Iterator[Image.Image]:
    for package in ICON_SETS:
        icon_set = VectorSet(fetch(package, work / "packages"))
        for name in icon_set.names[:: len(ICON_SETS)]:  # enough to vary, soon drawn
            yield icon_set.draw(name)


def clip_art(count: int, seed: int = 0) -> Iterator[Image.Image]:
    """Draw a random choice of clip art, each file name once; what cannot be drawn is left out."""
    files = {path.name: path for path in sorted(CLIP_ART.rglob("*.svg")) if path.stat().st_size < MAX_SVG_BYTES}
    chosen = np.random.default_rng(seed).permutation(list(files))[:count]
    for name in chosen:
        try:
            yield render_svg(files[name].read_text("utf-8", errors="ignore"))
        except ValueError:
            continue


def square(picture: Image.Image) -> Image.Image | None:
    """Trim a picture and centre it; None for one that is empty."""
    if picture.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox() is None:
        return None
    canvas = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    canvas.paste(picture, ((SPRITE_PX - picture.width) // 2, (SPRITE_PX - picture.height) // 2))
    return trim(canvas)


def package_folder(name: str) -> Path:
    """Find an installed package without importing it, so that it needs none of its own dependencies."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed; training/recipe.sh says what is needed")
    return Path(spec.origin).parent


def photograph_files() -> dict[str, Path]:
    folders = (package_folder("skimage") / "data", package_folder("sklearn") / "datasets" / "images")
    return {name: next(path for folder in folders if (path := folder / name).exists()) for name in PHOTOS}


def describe_sources(work: Path) -> list[dict[str, str]]:
    sources = [describe_source("autoencoder", fetch(package, work / "packages")) for package in ICON_SETS]
    clips = {"package": "openclipart-svg", "version": "0.18", "licence": "CC0-1.0", "author": "openclipart.org"}
    sources.append({"style": "autoencoder", **clips})
    for name, licence in PHOTOS.items():
        package = "scikit-learn" if name in ("china.jpg", "flower.jpg") else "scikit-image"
        row = {"package": f"{package}: {name}", "version": version(package), "licence": licence, "author": ""}
        sources.append({"style": "autoencoder", **row})
    return sources


def load_art(work: Path) -> NDArray[np.uint8]:
    """Open the further art without reading it into memory."""
    art: NDArray[np.uint8] = np.load(work / "art.npy", mmap_mode="r")
    return art


def load_photos(work: Path) -> NDArray[np.uint8]:
    """Cut the photographs that are not held out into squares (N, SPRITE_PX, SPRITE_PX, 4), at two sizes."""
    squares = []
    for path in sorted((work / "photos").glob("*.png")):
        if any(Path(name).stem == path.stem for name in HELD_OUT_PHOTOS):
            continue
        photo = Image.open(path).convert("RGBA")
        for tiles in (1, 2):
            scale = tiles * SPRITE_PX / min(photo.size)
            sized = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
            for left, top in np.ndindex(sized.width // SPRITE_PX, sized.height // SPRITE_PX):
                x, y = left * SPRITE_PX, top * SPRITE_PX
                squares.append(np.asarray(sized.crop((x, y, x + SPRITE_PX, y + SPRITE_PX))))
    return np.stack(squares)


def build(work: Path) -> None:
    (work / "photos").mkdir(parents=True, exist_ok=True)
    for path in photograph_files().values():
        Image.open(path).convert("RGB").save(work / "photos" / f"{path.stem}.png")
    (work / "art_sources.json").write_text(json.dumps(describe_sources(work), indent=1) + "\n", "utf-8")
    if (work / "art.npy").exists():
        return
    drawn = (square(picture) for source in (icons(work), clip_art(CLIP_ART_COUNT)) for picture in source)
    pictures = [np.asarray(picture) for picture in tqdm(drawn, desc="art", mininterval=5) if picture is not None]
    np.save(work / "art.partial.npy", np.stack(pictures))
    (work / "art.partial.npy").rename(work / "art.npy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data")
    build(parser.parse_args().work)
