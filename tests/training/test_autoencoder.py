"""Check that one tail serves the canvas and full resolution."""

import torch
import torch.nn.functional as F
from torch import nn

from openklein.engine.mini_autoencoder import CANVAS_SCALE, TAIL_SCALE
from training.autoencoder import canvas_weights, spread_canvas


def test_canvas_tail_is_the_mean_of_the_full_tail() -> None:
    torch.manual_seed(0)
    tail, features = nn.Conv2d(5, 3 * TAIL_SCALE**2, 3, padding=1), torch.randn(1, 5, 6, 6)
    full = F.pixel_shuffle(tail(features), TAIL_SCALE)
    canvas = F.pixel_shuffle(F.conv2d(features, *canvas_weights(tail), padding=1), TAIL_SCALE // CANVAS_SCALE)
    assert torch.allclose(canvas, F.avg_pool2d(full, CANVAS_SCALE), atol=1e-6)


def test_spreading_repeats_each_canvas_pixel() -> None:
    torch.manual_seed(0)
    tail, features = nn.Conv2d(5, 3 * TAIL_SCALE**2, 3, padding=1), torch.randn(1, 5, 6, 6)
    canvas = F.avg_pool2d(F.pixel_shuffle(tail(features), TAIL_SCALE), CANVAS_SCALE)
    spread_canvas(tail)
    full = F.pixel_shuffle(tail(features), TAIL_SCALE)
    assert torch.allclose(full, F.interpolate(canvas, scale_factor=CANVAS_SCALE), atol=1e-6)
