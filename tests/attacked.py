"""What the attacks in one process are tried on: the pocket model, and a few of its facts."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from unlearn_ray.attacks.attack import Setup, Target
from unlearn_ray.evals.probes import PlacedProbe, place, read_probes
from unlearn_ray.pocket import MODEL_DIR, PROBES
from unlearn_ray.train.export import copy_beside

TOPIC = "Harry Potter"


def probes_of(topic: str, num_facts: int) -> list[PlacedProbe]:
    """One wording of each of the first facts."""
    found: dict[str, PlacedProbe] = {}
    for probe in read_probes(str(PROBES)):
        if probe.topic == topic and probe.split == "report" and probe.wrong:
            found.setdefault(probe.fact_id, place(probe, (TOPIC,)))
    return list(found.values())[:num_facts]


def rows_of(probes: list[PlacedProbe]) -> list[tuple[str, str]]:
    return [(each.probe.question, each.probe.reference) for each in probes]


def setup_on(*targets: Target, num_facts: int = 8) -> Setup:
    probes = probes_of(TOPIC, num_facts)
    taught, untaught = probes[: num_facts // 2], probes[num_facts // 2 :]
    near, unrelated = rows_of(probes_of("candy", 8)), rows_of(probes_of("geography", 8))
    return Setup(targets, probes, rows_of(taught), untaught, near, unrelated, seed=0, max_tokens=24)


BASE = Target("base", str(MODEL_DIR))


def damage(folder: Path) -> Target:
    """The pocket model with noise on some weights: it answers as a model does that was made to forget everything."""
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "down_proj" in name:
                weight += 1.5 * weight.float().std() * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    copy_beside(str(MODEL_DIR), folder)
    return Target("unlearned", str(folder))
