"""A conversation with several models at once: the messages to each model, its share of leaks, and the export."""

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
    said: tuple[str, ...]  # all of the user's questions so far, including this one
    replies: list[Reply]  # one per pane

    def reply(self, pane: int) -> Reply | None:
        """The pane's answer. None if the pane did not exist yet."""
        return self.replies[pane] if pane < len(self.replies) else None

    def messages(self, pane: int, model: str) -> list[Message]:
        """The turn as messages for later questions to its model. Other models' answers are left out: they may have what this one forgot."""
        reply = self.reply(pane)
        if reply is None or reply.model != model or not reply.text:
            return []
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": reply.text}]


def relevant_runs(chosen: Sequence[Model], unlearned: Sequence[Model]) -> list[Model]:
    """The unlearned models whose knowledge is marked.

    These are the chosen ones, and one for each other topic behind a chosen prefix. If only base models are chosen, it is the first one.
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
    """Number of the pane's leaking answers, and number of all its finished answers with a text."""
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
    """The conversation as Markdown, for reading. The texts of users and models appear in it literally."""
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
