"""Draw the same prompts from the same noise every so often, to see a run of the flow learn."""

from dataclasses import replace
from pathlib import Path

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.device import choose_device
from openklein.engine.weights import load_card
from training.bench import make, sheet
from training.export import export
from training.model import MiniModel

CARD = replace(KLEIN_MINI, steps=10, guidance=3.0)  # what is not distilled yet wants both
PROMPTS = (
    "a lion", "a red apple", "a rocket", "a castle", "an octopus", "a guitar", "a snowman", "a flat penguin",
    "a 3d strawberry", "a simple car", "a dog on a teal background", "a sunflower in a meadow", "a blue butterfly",
    "a pizza to the left of a hamburger", "three bananas", "a moon at night",
)  # fmt: skip
SEED = 0


def draw_samples(model: MiniModel, work: Path, minutes: float) -> None:
    """Write FOLDER/flow/samples/MINUTES.webp."""
    folder = work / "flow" / "samples"
    export(model, work, folder / "weights")
    pipeline = load_card(CARD, folder / "weights", choose_device())
    sheet([make(pipeline, prompt, SEED) for prompt in PROMPTS], 8, folder / f"{minutes:04.0f}.webp")
