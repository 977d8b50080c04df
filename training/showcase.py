"""Draw the pictures of the README, of klein-mini's card and of the page's templates, from prompts alone.

`python -m training.showcase --to docs/klein-mini` writes into that folder:
  readme.png                  drawn and edited pictures
  smoke.png, smoke_key.json   the plain prompts, shuffled, and which is which (for a blind reader)
and beside the page's `templates.json` a picture for each template.
"""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from openklein.contract import MINI_MODEL
from openklein.engine.pipeline import Pipeline
from openklein.engine.weights import load_pipeline
from training.bench import make, sheet

PROMPTS_FILE = Path(__file__).with_name("prompts") / "smoke.txt"
TEMPLATES = Path(str(files("openklein"))) / "playground" / "templates"
THUMBNAIL_PX = 192
SHOWN = (
    "a lion", "a strawberry", "a soccer ball", "a hamburger", "a penguin on a light blue background",
    "three pumpkins", "a robot and a rocket on a yellow background", "a castle at sunset",
)  # fmt: skip
EDITED = (  # which of those are edited, and how
    ((0,), "change the background to teal"),
    ((0,), "make it black and white"),
    ((4,), "mirror the image"),
    ((1,), "paint it blue"),
    ((0,), "turn it into a line drawing"),
    ((2,), "replace it with a basketball"),
    ((0, 1), "put them side by side"),
    ((0, 3), "put image 1 on top of image 2"),
)


def plain_prompts(pipeline: Pipeline, folder: Path) -> None:
    """Draw the plain prompts, shuffled for a blind reader."""
    prompts = PROMPTS_FILE.read_text("utf-8").splitlines()
    order = np.random.default_rng(32).permutation(len(prompts))
    sheet([make(pipeline, prompts[i], seed=0) for i in order], 8, folder / "smoke.png", THUMBNAIL_PX)
    key = {f"row {n // 8 + 1}, column {n % 8 + 1}": prompts[i] for n, i in enumerate(order)}
    (folder / "smoke_key.json").write_text(json.dumps(key, indent=1) + "\n")


def first_screen(pipeline: Pipeline, folder: Path) -> None:
    """Draw from prompts, and edit what was drawn."""
    drawn = [make(pipeline, prompt, 0) for prompt in SHOWN]
    edited = [make(pipeline, prompt, 0, *(drawn[i] for i in sources)) for sources, prompt in EDITED]
    sheet([*drawn, *edited], 8, folder / "readme.png", THUMBNAIL_PX)


def templates(pipeline: Pipeline) -> None:
    """Make the page's templates in order; later ones edit what earlier ones made."""
    made: dict[str, Image.Image] = {}
    for template in json.loads((TEMPLATES / "templates.json").read_text("utf-8")):
        sources = [made[name] for name in template["sources"]]
        picture = make(pipeline, template["prompt"], template["seed"], *sources, aspect=template["aspect_ratio"])
        path = TEMPLATES / f"{template['name']}.webp"
        picture.save(path, quality=88, method=6)
        made[template["name"]] = Image.open(path).convert("RGB")  # as the page will send it


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="folder for the pictures")
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(MINI_MODEL, Path("/nonexistent"))
    plain_prompts(pipeline, folder)
    first_screen(pipeline, folder)
    templates(pipeline)
