"""Choose the noise levels of a picture from its number of tokens and the number of steps.

The empirical shift `mu` is that of black-forest-labs/flux2 `sampling.py`; reference tokens do not count.
"""

import math


def empirical_mu(token_count: int, steps: int) -> float:
    """Give the time shift for `token_count` target tokens and `steps` steps."""
    mu_200_steps = 0.00016927 * token_count + 0.45666666
    if token_count > 4300:
        return mu_200_steps
    mu_10_steps = 8.73809524e-05 * token_count + 1.89833333
    slope = (mu_200_steps - mu_10_steps) / 190
    return slope * steps + mu_200_steps - 200 * slope


def sigmas(token_count: int, steps: int) -> list[float]:
    """List the `steps + 1` noise levels, from 1 down to 0."""
    shift = math.exp(empirical_mu(token_count, steps))
    times = [1 - step / steps for step in range(steps)]
    return [shift / (shift + 1 / time - 1) for time in times] + [0.0]
