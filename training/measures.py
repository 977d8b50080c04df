"""Measure pictures: colours, errors, parts."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.scenes import COLOURS

DELTA_E_LIMIT = 25.0
EXACT_PSNR_DB = 18.0
CROP_MARGIN = 1.1
Pixels = NDArray[np.uint8]


def to_lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert sRGB 0..255 (..., 3) to CIE L*a*b*, D65 (IEC 61966-2-1, CIE 15)."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def delta_e(pixels: Pixels, colour: str) -> float:
    """Give the CIE76 distance between the median of pixels (N, 3) and a named colour."""
    median = np.median(pixels.astype(np.float64), axis=0)
    return float(np.linalg.norm(to_lab(median) - to_lab(np.array(COLOURS[colour], np.float64))))


def border(picture: Pixels) -> Pixels:
    """List the pixels of the outermost twentieth on each side."""
    depth = min(picture.shape[:2]) // 20
    inside = np.zeros(picture.shape[:2], bool)
    inside[depth:-depth, depth:-depth] = True
    return picture[~inside]


def psnr(ours: Pixels, theirs: Pixels) -> float:
    """Give the peak signal-to-noise ratio of pixels (N, 3) in dB."""
    error = np.mean((ours.astype(np.float64) - theirs) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def crop(result: Image.Image, size: float, x: float, y: float) -> Image.Image:
    """Cut out the square where a thing should stand, with a little around it; size and place as scenes give them."""
    side = CROP_MARGIN * size * min(result.size)
    x, y = x * result.width, y * result.height
    return result.crop((round(x - side / 2), round(y - side / 2), round(x + side / 2), round(y + side / 2)))


def count_parts(picture: Pixels, cells: int = 64, least: int = 12) -> int:
    """Count connected regions that differ from the border, at least `least` of cells x cells in area."""
    small = np.asarray(Image.fromarray(picture).resize((cells, cells), Image.Resampling.BOX), np.float32)
    open_cells = np.abs(small - np.median(border(picture), axis=0)).max(-1) > 24
    found = 0
    while open_cells.any():
        region = np.zeros_like(open_cells)
        region[tuple(np.argwhere(open_cells)[0])] = True
        area = 0
        while region.sum() != area:
            area = int(region.sum())
            grown = np.pad(region, 1)
            region = (
                grown[1:-1, 1:-1] | grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
            ) & open_cells
        open_cells &= ~region
        found += area >= least
    return found


def is_exact(result: Image.Image, target: Pixels, source: Pixels) -> bool:
    """Tell whether a result is near the true outcome, and nearer by half than the source is."""
    pixels = np.asarray(result.resize((target.shape[1], target.shape[0]), Image.Resampling.BOX))
    error, unchanged = (np.mean((p.astype(np.float64) - target) ** 2) for p in (pixels, source))
    return bool(psnr(pixels, target) >= EXACT_PSNR_DB and error < unchanged / 2)
