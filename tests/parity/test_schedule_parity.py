"""The schedule against a table of expected values, and against diffusers."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from openklein.contract import RESOLUTIONS
from openklein.engine.pipeline import Pipeline
from openklein.engine.sampler import denoise
from openklein.engine.schedule import empirical_mu, sigmas
from openklein.engine.types import Progress
from tests.parity.both_pipelines import our_pipeline, request
from tests.parity.compare import TOLERANCE, assert_far, assert_same, relative_error

FOUR_STEPS = [  # (width, height), tokens, mu, sigmas
    ((256, 256), 256, 1.965567, [1, 0.955391, 0.877134, 0.704112, 0]),
    ((512, 512), 1024, 2.030690, [1, 0.958085, 0.883982, 0.717497, 0]),
    ((768, 768), 2304, 2.139227, [1, 0.962234, 0.894658, 0.738969, 0]),
    ((1360, 768), 4080, 2.289823, [1, 0.967341, 0.908031, 0.766958, 0]),
    ((1024, 1024), 4096, 2.291180, [1, 0.967384, 0.908144, 0.767200, 0]),
    ((1536, 1024), 6144, 1.496662, [1, 0.930557, 0.817076, 0.598219, 0]),
    ((2048, 2048), 16384, 3.229986, [1, 0.986986, 0.961947, 0.893915, 0]),
]


def reference_scheduler(token_count: int, steps: int) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    mu = compute_empirical_mu(token_count, steps)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler


@pytest.mark.parametrize(("size", "token_count", "mu", "expected"), FOUR_STEPS, ids=lambda value: str(value))
def test_the_table(size: tuple[int, int], token_count: int, mu: float, expected: list[float]) -> None:
    assert token_count == tokens_of(size)
    assert empirical_mu(token_count, 4) == pytest.approx(mu, abs=5e-7)
    assert sigmas(token_count, 4) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 50, 200])
@pytest.mark.parametrize("token_count", [16, 64, 4032, 4299, 4300, 4301, 9216])
def test_against_diffusers(token_count: int, steps: int) -> None:
    assert empirical_mu(token_count, steps) == pytest.approx(compute_empirical_mu(token_count, steps), rel=1e-12)
    assert_same(torch.tensor(sigmas(token_count, steps)), reference_scheduler(token_count, steps).sigmas)


@pytest.mark.parametrize("size", RESOLUTIONS.values(), ids=RESOLUTIONS)
def test_every_aspect_ratio(size: tuple[int, int]) -> None:
    expected = reference_scheduler(tokens_of(size), 4).sigmas
    assert_same(torch.tensor(sigmas(tokens_of(size), 4)), expected)
    shift = math.exp(2.02)  # what some programs use at every size
    wrong = [shift / (shift + 1 / time - 1) for time in (1, 0.75, 0.5, 0.25)] + [0.0]
    assert_far(torch.tensor(wrong), expected)


def times_of_ours(pipeline: Pipeline, size: tuple[int, int]) -> list[Tensor]:
    noted: list[Tensor] = []

    def note(image: Tensor, text: Tensor, times: Tensor, rotary: object) -> Tensor:
        noted.append(times)
        return torch.zeros_like(image)

    pipeline._transformer.forward = note  # type: ignore[method-assign, assignment]
    text = torch.zeros(1, 512, 32, dtype=torch.bfloat16)
    references = torch.zeros(1, 0, 16, dtype=torch.bfloat16)
    pipeline._denoise(request(width=size[0], height=size[1]), text, references, [], lambda progress: None)
    return noted


def test_bfloat16_makes_the_same_times_at_every_aspect_ratio() -> None:
    pipeline = our_pipeline(dtype=torch.bfloat16)
    rounded_once = []
    for size in RESOLUTIONS.values():
        expected = reference_scheduler(tokens_of(size), 4).timesteps.bfloat16() / 1000
        assert torch.equal(torch.cat(times_of_ours(pipeline, size)), expected)
        rounded_once.append(torch.equal(torch.tensor(sigmas(tokens_of(size), 4)[:-1]).bfloat16(), expected))
    assert not any(rounded_once)


def tokens_of(size: tuple[int, int]) -> int:
    return size[0] // 16 * (size[1] // 16)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.bfloat16, 2**-8)], ids=str)
def test_the_euler_steps(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 64, 8, generator=generator).to(dtype)
    velocities = [torch.randn(1, 64, 8, generator=generator).to(dtype) for _ in range(4)]

    reference = reference_scheduler(64, 4)
    expected = noise
    for timestep, velocity in zip(reference.timesteps, velocities, strict=True):
        expected = reference.step(velocity, timestep, expected, return_dict=False)[0]

    progress: list[Progress] = []
    remaining = iter(velocities)
    ours = denoise(noise, sigmas(64, 4), lambda latents, sigma: next(remaining), progress.append)
    assert ours.dtype == dtype
    assert relative_error(ours.float(), expected.float()) <= tolerance
    assert progress == [Progress(step, 4) for step in range(5)]


def test_each_step_is_told_its_own_sigma() -> None:
    seen: list[float] = []

    def predict(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(sigma)
        return torch.ones_like(latents)

    end = denoise(torch.zeros(1, 1, 1), sigmas(4096, 4), predict, lambda progress: None)
    assert seen == sigmas(4096, 4)[:-1]
    assert end.item() == pytest.approx(-1, abs=TOLERANCE)  # a straight line from sigma 1 to 0
