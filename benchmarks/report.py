"""Head the reports of benchmarks that compare the 4B with other libraries."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.engine import describe_machine


def comparison_report(benchmark: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the JSON document of a comparison: where, when and with which versions its rows were measured."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).date().isoformat(),
        "checkpoint": "random weights at the 4B's shapes",
        "machine": describe_machine("cpu", torch.get_num_threads()),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "rows": rows,
    }
