"""Carry a request into the engine and a picture out of it; no framework types inside."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image

from openklein.contract import Workflow, select_workflow


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One picture to make: sizes in pixels, references upright and RGB, seed from 0 to 2^63-1."""

    prompt: str
    width: int
    height: int
    seed: int
    references: tuple[Image.Image, ...] = ()

    @property
    def workflow(self) -> Workflow:
        return select_workflow(len(self.references))


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One finished RGB picture, with the seconds each stage took."""

    image: Image.Image
    model: str
    seed: int
    timings: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 1  # how many pictures were made together, this one included
    prompt_cached: bool = False  # whether the prompt's features were kept from an earlier picture


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `steps` denoise steps are done."""

    step: int
    steps: int
