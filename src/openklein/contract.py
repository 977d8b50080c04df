"""State what the Klein image API promises: resolutions, limits, workflows and model ids.

Imports nothing heavy, so that clients, command line and documentation can read it.
"""

from typing import Final, Literal

Workflow = Literal["text-to-image", "image-to-image", "multi-reference"]

DEFAULT_MODEL: Final = "flux2-klein-4b"
MINI_MODEL: Final = "klein-mini"
MODEL_IDS: Final = (DEFAULT_MODEL, MINI_MODEL)
BASE_MODEL: Final = "flux2-klein-base-4b"
SERVABLE_MODEL_IDS: Final = (*MODEL_IDS, BASE_MODEL)  # the last is known only to servers whose operator chose it

DEFAULT_ASPECT_RATIO: Final = "landscape"
RESOLUTIONS: Final[dict[str, tuple[int, int]]] = {  # aspect ratio: (width, height) in pixels
    "square": (1024, 1024),
    "landscape": (1344, 768),
    "portrait": (768, 1344),
    "photo": (1248, 832),
    "photo_v": (832, 1248),
    "standard": (1184, 896),
    "standard_v": (896, 1184),
    "wide": (1568, 672),
}

MAX_REFERENCES: Final = 4
MAX_PROMPT_TOKENS: Final = 500
MAX_SEED: Final = 2**63 - 1
MIN_REFERENCE_SIDE_PX: Final = 64
MAX_REFERENCE_ASPECT: Final = 8  # longer side over shorter side


def select_workflow(reference_count: int) -> Workflow:
    """Name the workflow that the number of reference images selects (0, 1, or 2 to 4)."""
    if reference_count == 0:
        return "text-to-image"
    return "image-to-image" if reference_count == 1 else "multi-reference"
