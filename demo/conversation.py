"""A conversation with several models at once: what each is told of it, its share of leaks, and its export."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asking import Reply
from client import Message, Model
from escaping import as_markdown

from unlearn_ray.words import leaked


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and each pane's answer to it."""

    question: str
    said: tuple[str, ...]  # all that the user had said by then, this question included
    replies: list[Reply]  # a pane

    def reply(self, pane: int) -> Reply | None:
        """The pane's answer; None where it was not there yet."""
        return self.replies[pane] if pane < len(self.replies) else None

    def messages(self, pane: int, model: str) -> list[Message]:
        """The turn as its model is told of it later. Another model's answers are not: they might hold what this one forgot."""
        reply = self.reply(pane)
        if reply is None or reply.model != model or not reply.text:
            return []
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": reply.text}]


def relevant_runs(chosen: Sequence[Model], unlearned: Sequence[Model]) -> list[Model]:
    """The unlearned models whose knowledge is looked for.

    Those chosen, one for each other topic behind a chosen prefix, and the first there is if only base models are chosen.
    """
    found = {model.root: model for model in chosen if model.kind == "unlearned"}
    covered = {topic for model in found.values() for topic in model.topics}
    for topic in (topic for model in chosen if model.kind == "guarded" for topic in model.topics):
        model = next((model for model in unlearned if topic in model.topics), None)
        if topic not in covered and model is not None:
            found.setdefault(model.root, model)
            covered |= set(model.topics)
    return list(found.values()) or list(unlearned[:1])


def meter(turns: Sequence[Turn], pane: int, model: str, terms: Sequence[str], names: str) -> tuple[int, int]:
    """The answers of the pane's model that leak, and all of them that have ended with a text."""
    leaking = []
    for turn in turns:
        reply = turn.reply(pane)
        if reply is not None and reply.model == model and reply.text and not reply.is_running:
            leaking.append(bool(leaked(reply.text, terms, "\n".join((names, *turn.said)))))
    return sum(leaking), len(leaking)


def as_json(turns: Sequence[Turn], sampling: Mapping[str, float]) -> str:
    listed = [
        {
            "question": turn.question,
            "answers": [{"model": r.model, "answer": r.text, "state": r.state, "note": r.note} for r in turn.replies],
        }
        for turn in turns
    ]
    return json.dumps({"sampling": dict(sampling), "turns": listed}, indent=1, ensure_ascii=False)


def as_document(turns: Sequence[Turn]) -> str:
    """The conversation as Markdown, for reading: what users and models wrote stands in it letter by letter."""
    lines = ["# Conversation"]
    for turn in turns:
        lines += ["", f"## {as_markdown(turn.question)}"]
        for reply in turn.replies:
            ending = (
                ""
                if reply.state == "done"
                else f"\n\n*({reply.state}{f': {as_markdown(reply.note)}' if reply.note else ''})*"
            )
            said = "\n".join(f"> {as_markdown(line)}" for line in reply.text.splitlines())
            lines += ["", f"**{as_markdown(reply.model)}**", "", said + ending]
    return "\n".join(lines) + "\n"
