"""Fetch the art, and render every (concept, style) pair as a transparent sprite.

`python -m training.data --work FOLDER` leaves in FOLDER:
  packages/              the source packages, fetched by name with npm
  sprites.npy            uint8 (concepts, styles, SPRITE_PX, SPRITE_PX, 4), straight alpha
  sources.json           package, version, licence and author of every source
Already finished parts are kept, so that it can be run again after an interruption.
"""

import argparse
import io
import json
import re
import subprocess
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

SPRITE_PX = 512
CONCEPTS_FILE = Path(__file__).with_name("concepts.txt")
EMOJIBASE = "emojibase-data@17.0.0"
STYLES = {  # style: package
    "cartoon": "@iconify-json/noto@1.2.9",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "simple": "@iconify-json/twemoji@1.2.5",
}
SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing the model learns to draw: its CLDR name, and other words for it."""

    label: str
    aliases: tuple[str, ...]
    varies: str = ""  # "skin" if it comes in `SKIN_TONES`, "face" if others differ from it by expression alone


def read_concepts() -> list[Concept]:
    """Read `label | alias, alias | skin or face` lines; `#` starts a comment line."""
    lines = [line for line in CONCEPTS_FILE.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    concepts = []
    for line in lines:
        label, aliases, varies, *_ = (part.strip() for part in f"{line}||".split("|"))
        concepts.append(Concept(label, tuple(filter(None, aliases.split(", "))), varies))
    return concepts


def skin_row(person: int, tone: int) -> int:
    """Give the row of the sprites that shows the `person`th concept with skin in one of `SKIN_TONES`; from the end."""
    return -1 - len(SKIN_TONES) * person - tone


def is_held_out(concept: str, style: str) -> bool:
    """Tell whether a (concept, style) pair is never shown in training."""
    return int(sha256(f"{concept}|{style}".encode()).hexdigest(), 16) % 10 == 7


def fetch(package: str, folder: Path) -> Path:
    """Download and unpack `name@version` with npm, once; return its folder."""
    target = folder / re.sub(r"[^a-z0-9.]+", "-", package.lower()).strip("-")
    if not (target / "package.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", package, "--silent"], cwd=folder, check=True, capture_output=True, text=True
        )
        archive = folder / packed.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "unpacking", filter="data")
        (folder / "unpacking" / "package").rename(target)
        archive.unlink()
    return target


def slug(label: str) -> str:
    """Spell a CLDR label as the icon sets do: `smiling face` is `smiling-face`."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("[’']", "", label.lower())).strip("-")


class VectorSet:
    """Draw icons from a package of SVG bodies."""

    def __init__(self, package: Path) -> None:
        self._icons: dict[str, Any] = json.loads((package / "icons.json").read_text("utf-8"))
        chars = package / "chars.json"
        self._names: dict[str, str] = json.loads(chars.read_text("utf-8")) if chars.exists() else {}

    @property
    def names(self) -> list[str]:
        return list(self._icons["icons"])

    def find(self, label: str, hexcode: str) -> str:
        """Give the icon's name for an emoji: by code points where the package lists them, else by its label."""
        codes = (hexcode.lower(), hexcode.lower().replace("-fe0f", ""))
        name = next((self._names[code] for code in codes if code in self._names), slug(label))
        parent: str = self._icons.get("aliases", {}).get(name, {}).get("parent", name)
        return parent

    def draw(self, name: str) -> Image.Image:
        icon = self._icons["icons"][name]
        width, height = (icon.get(side, self._icons.get(side, 16)) for side in ("width", "height"))
        return render_svg(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )


class RasterSet:
    """Read emoji from a package of WebP files, which are named by code points."""

    def __init__(self, package: Path) -> None:
        self._assets = package / "assets"

    def find(self, label: str, hexcode: str) -> str:
        code = hexcode.lower()
        names = (code, f"{code}-fe0f", code.replace("-fe0f", ""))
        return next(name for name in names if (self._assets / f"{name}.webp").exists())

    def draw(self, name: str) -> Image.Image:
        picture = Image.open(self._assets / f"{name}.webp").convert("RGBA")
        return picture.resize((SPRITE_PX, SPRITE_PX), Image.Resampling.LANCZOS)


@cache
def open_set(package: Path) -> VectorSet | RasterSet:
    return RasterSet(package) if (package / "assets").exists() else VectorSet(package)


def draw_sprite(package: Path, name: str) -> NDArray[np.uint8]:
    return np.asarray(trim(open_set(package).draw(name)))


def render_svg(svg: str) -> Image.Image:
    """Draw a whole SVG document, SPRITE_PX wide at most and high."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE_PX, height=SPRITE_PX))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def trim(sprite: Image.Image) -> Image.Image:
    """Crop the empty border away, so that every thing has the same size, and centre it on a square."""
    box = sprite.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    assert box is not None, "the sprite is empty"
    thing = sprite.crop(box)
    scale = SPRITE_PX / max(thing.size)
    thing = thing.resize(
        (max(1, round(thing.width * scale)), max(1, round(thing.height * scale))), Image.Resampling.LANCZOS
    )
    square = Image.new("RGBA", (SPRITE_PX, SPRITE_PX))
    square.paste(thing, ((SPRITE_PX - thing.width) // 2, (SPRITE_PX - thing.height) // 2))
    return square


def describe_source(style: str, package: Path) -> dict[str, str]:
    """Read licence and author from the package itself."""
    manifest = json.loads((package / "package.json").read_text("utf-8"))
    info_file = package / "info.json"
    info = json.loads(info_file.read_text("utf-8")) if info_file.exists() else {}
    author = info.get("author", {}).get("name") or "Microsoft Corporation"
    return {
        "style": style,
        "package": manifest["name"],
        "version": manifest["version"],
        "licence": info.get("license", {}).get("spdx") or manifest["license"],
        "author": author,
    }


def load_sprites(work: Path) -> NDArray[np.uint8]:
    """Open the rendered sprites without reading them into memory: every concept's, then other skin tones."""
    sprites: NDArray[np.uint8] = np.load(work / "sprites.npy", mmap_mode="r")
    return sprites


def build(work: Path) -> None:
    """Fetch every source and render every sprite."""
    packages = {style: fetch(package, work / "packages") for style, package in STYLES.items()}
    emojibase = fetch(EMOJIBASE, work / "packages")
    entries = json.loads((emojibase / "en" / "data.json").read_text("utf-8"))
    hexcodes = {skin["label"]: skin["hexcode"] for entry in entries for skin in (entry, *entry.get("skins", ()))}
    sources = [describe_source(style, package) for style, package in packages.items()]
    (work / "sources.json").write_text(json.dumps(sources, indent=1) + "\n", "utf-8")
    if (work / "sprites.npy").exists():
        return
    concepts = read_concepts()
    labels = [concept.label for concept in concepts]
    people = [concept.label for concept in concepts if concept.varies == "skin"]
    labels += [f"{person}: {tone} skin tone" for person in people[::-1] for tone in SKIN_TONES[::-1]]
    shape = (len(labels), len(STYLES), SPRITE_PX, SPRITE_PX, 4)
    partial = work / "sprites.partial.npy"
    sprites = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
    icons = [
        (package, open_set(package).find(label, hexcodes[label])) for label in labels for package in packages.values()
    ]
    with ProcessPoolExecutor() as processes:
        drawn = processes.map(draw_sprite, *zip(*icons, strict=True), chunksize=16)
        for place, sprite in zip(
            np.ndindex(shape[:2]), tqdm(drawn, "rendering", len(icons), mininterval=5), strict=True
        ):
            sprites[place] = sprite
    sprites.flush()
    partial.rename(work / "sprites.npy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and results")
    build(parser.parse_args().work)
