from pathlib import Path

import pytest
import torch

from openklein.engine.memory import available_bytes, container_bytes, weight_bytes


def test_weights_are_counted_in_their_final_dtype() -> None:
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(10, 3), torch.nn.BatchNorm2d(5, affine=False))
    floats, counters = 10 * 3 + 3 + 2 * 5, 1
    assert weight_bytes(module, torch.bfloat16) == 2 * floats + 8 * counters
    assert weight_bytes(module, torch.float32) == 4 * floats + 8 * counters


def test_this_machine_has_some() -> None:
    assert 2**24 < available_bytes(torch.device("cpu")) < 2**60


@pytest.mark.parametrize(
    ("limit", "left"), [("max", float("inf")), ("8000000000", 8_000_000_000 - 3_000_000_000 + 1_000_000_000)]
)
def test_the_limit_of_a_container_counts_but_cached_files_do_not(tmp_path: Path, limit: str, left: float) -> None:
    assert container_bytes(tmp_path) == float("inf")  # no such files outside of one
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("3000000000\n")
    (tmp_path / "memory.stat").write_text("anon 1900000000\ninactive_file 1000000000\nactive_file 100000000\n")
    assert container_bytes(tmp_path) == left
