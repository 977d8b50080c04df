"""Check how weights are rounded for the package."""

import torch

from training.export import eight_bit, sixteen_bit


def test_matrices_take_eight_bits_and_the_rest_sixteen() -> None:
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(5, 300) * torch.logspace(-3, 3, 5)[:, None], "norm.weight": torch.randn(7)}
    rounded = eight_bit(state)
    assert {name: tensor.dtype for name, tensor in rounded.items()} == {
        "a.weight": torch.int8,
        "a.weight_scale": torch.float32,
        "norm.weight": torch.bfloat16,
    }
    error = (rounded["a.weight"] * rounded["a.weight_scale"][:, None] - state["a.weight"]).abs()
    assert (error <= 0.501 / 127 * state["a.weight"].abs().amax(1, keepdim=True)).all(), "half a step of each row's own"
    assert torch.equal(rounded["norm.weight"], state["norm.weight"].bfloat16())


def test_statistics_keep_their_precision() -> None:
    state = {"bn.running_mean": torch.tensor([1.0001]), "a.weight": torch.ones(2, 2), "bn.count": torch.tensor(3)}
    dtypes = {name: tensor.dtype for name, tensor in sixteen_bit(state).items()}
    assert dtypes == {"bn.running_mean": torch.float32, "a.weight": torch.bfloat16, "bn.count": torch.int64}
