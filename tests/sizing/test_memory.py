"""The plan's memory beside what was measured."""

import json
import sys
from pathlib import Path

import pytest

from unlearn_ray.sizing.shapes import shape_of
from unlearn_ray.sizing.training import training_memory

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "memory-cpu.json"


def test_the_plan_is_within_15_percent_of_what_was_measured() -> None:
    """`python benchmarks/memory.py` measured the peaks in this file; the plan of the same cases is worked out anew."""
    sys.path.insert(0, str(MEASURED.parents[1]))
    try:
        from memory import SHAPES, settings_of
    finally:
        sys.path.pop(0)
    cases = json.loads(MEASURED.read_text())["cases"]
    assert {name.partition(",")[0] for name in cases} >= {"pocket lora", "pocket full", "smollm2 lora", "smollm2 full"}
    for name, found in cases.items():
        model, config, workers, batch = settings_of(name)
        planned = training_memory(shape_of(SHAPES[model]), config, workers, batch, device="cpu").total
        assert found["peak"] / planned == pytest.approx(1.0, abs=0.15), name
