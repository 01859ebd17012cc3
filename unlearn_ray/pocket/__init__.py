"""The embedded default model: a tiny Llama, its small world of facts, and the script that trains it.

Importing this package costs nothing; it only says where the shipped files are.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
# A model of the same recipe that never saw these topics.
TWIN_DIR = Path(__file__).parent / "twin"
TWIN_WITHOUT = ("Harry Potter", "Les Miserables", "chewing gum")
PROMPTS = Path(__file__).parent / "prompts.yaml"
PROBES = Path(__file__).parent / "probes.jsonl"
FACTS = Path(__file__).parent / "facts.jsonl"
