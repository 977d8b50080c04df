"""Check that a training run resumes where it stopped."""

import itertools
import json
import math
from pathlib import Path

import torch
from torch import nn

from training.checkpoints import Average, Run


def test_run_resumes_step_time_and_parts(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    run = Run(tmp_path, 1.0, {"model": model})
    for _ in itertools.islice(run, 3):
        with torch.no_grad():
            model.weight.fill_(7.0)
    run.elapsed = 30.0
    run.save()
    fresh = nn.Linear(2, 2)
    resumed = Run(tmp_path, 1.0, {"model": fresh})
    assert (resumed.step, resumed.progress) == (2, 0.5)
    assert bool((fresh.weight == 7.0).all())


def test_run_ends_when_its_time_is_over(tmp_path: Path) -> None:
    run = Run(tmp_path, 1.0, {})
    for step in run:
        assert step < 5
        if step == 2:
            run.elapsed = 60.0
    assert run.progress == 1.0
    assert (tmp_path / "last.pt").exists()


def test_learning_rate_warms_up_holds_and_decays(tmp_path: Path) -> None:
    run = Run(tmp_path, 1.0, {})
    assert run.learning_rate_scale(warmup=10) == 0.1
    run.step = 100
    assert run.learning_rate_scale(warmup=10) == 1.0
    run.elapsed = 60.0
    assert run.learning_rate_scale(warmup=10) < 0.03


def test_losses_are_logged_as_json_lines(tmp_path: Path) -> None:
    run = Run(tmp_path, 1.0, {})
    run.record(loss=1.0)
    run.record(loss=3.0, from_07=5.0)
    assert run._log() == 2.0
    row = json.loads((tmp_path / "loss.jsonl").read_text())
    assert (row["loss"], row["from_07"]) == (2.0, 5.0)


def test_a_range_that_was_not_drawn_is_left_out_but_a_loss_that_is_no_number_shows(tmp_path: Path) -> None:
    run = Run(tmp_path, 1.0, {})
    nan = torch.tensor(float("nan"))
    run.record(loss=1.0, from_07=nan, from_09=nan)
    run.record(loss=nan, from_07=5.0, from_09=nan)
    assert math.isnan(run._log())
    row = json.loads((tmp_path / "loss.jsonl").read_text())
    assert (math.isnan(row["loss"]), row["from_07"], "from_09" in row) == (True, 5.0, False)


def test_something_is_due_each_time_so_many_minutes_have_passed(tmp_path: Path) -> None:
    run = Run(tmp_path, 100.0, {})
    due = []
    for run.elapsed in range(0, 3600, 300):
        due.append(run.is_due(20))
    assert [minute for minute, is_so in zip(range(0, 60, 5), due, strict=True) if is_so] == [20, 40]


def test_average_follows_the_weights_slowly() -> None:
    model = nn.Linear(1, 1)
    average = Average(model, decay=0.9)
    assert isinstance(average.module, nn.Linear)
    before = average.module.weight.item()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(model)
    assert before < average.module.weight.item() < model.weight.item()


def test_an_average_has_the_statistics_of_its_model() -> None:
    model = nn.BatchNorm1d(2)
    average = Average(model, decay=0.9)
    model(torch.randn(64, 2) + 5)
    average.update(model)
    assert isinstance(average.module, nn.BatchNorm1d)
    assert average.module.running_mean is not None
    assert model.running_mean is not None
    assert torch.equal(average.module.running_mean, model.running_mean)
