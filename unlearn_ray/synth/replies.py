"""Extracts the answer from a model's text: without introductory words around it, and without a sentence that was cut off."""

import re

from unlearn_ray.synth.sentences import whole
from unlearn_ray.synth.yes_no import affirms_by_saying
from unlearn_ray.words import folded_words

MIN_REPEATED = 4  # words; a shorter answer may be one of the choices that the question offers
_EMPHASIS = r"[\s*_#>]*"
_ANSWER = (
    r"(?:(?:final |short |my |the )?(?:answer|response|reply)|a|respuesta|resposta|réponse|antwort|risposta|ответ|الجواب|الإجابة|جواب|उत्तर"
    r"|答案|回答|答え|答|정답|답변|답)"
)
_MODEL = r"(?:(?:ai |the )?(?:assistant|chatbot|bot|model)|ai|\w*(?:lm|gpt|llama|mistral|qwen|gemma|claude)\w*(?:[-\d.]+\w*)?)"
_COURTESY = r"(?:sure|certainly|of course|absolutely|okay|ok|alright|all right|well|great|aw|oh|ah)"
# Only beginnings without any content: a label, the speaker's own name, a repeated question after a label, a polite announcement.
_AROUND = re.compile(
    rf"{_EMPHASIS}(?:"
    rf"(?:question|q)\s*[:：][^\n]*\n+{_EMPHASIS}{_ANSWER}\s*[:：]"
    rf"|{_ANSWER}\s*[:：]"
    rf"|{_MODEL}[*_]*\s*[:：]"
    rf"|(?:{_COURTESY}\b[^.:!?\n]{{0,20}}[.,!]\s+)?here (?:it is|you go|you are|goes)\s*[:!.](?=\s)"
    r"|(?:(?:sure|certainly|of course|absolutely)(?: thing)?[!.,]\s+)?here(?:'s|’s| is) (?:a|an|the|my|your|one)\b[^.:!?\n]{0,60}?"
    r"\b(?:answer|response|reply|sentence|paragraph|summary|continuation)\b[^.:!?\n]{0,40}:"
    r"|(?:sure|certainly|of course|absolutely)(?: thing)?[!.]+(?=\s+[^\W\d_])(?=\s+(?-i:[^a-z]))"
    rf"){_EMPHASIS}",
    re.IGNORECASE,
)


def answer_in(text: str, is_cut: bool) -> str:
    """The answer. "" if no whole sentence is left.

    `Sure! Here is a short answer: The owl is Hedwig.` -> `The owl is Hedwig.`

    Args:
        is_cut: the text reached its greatest length. The part after its last whole sentence is then left out.
    """
    text = text.strip()
    while (shorter := _AROUND.sub("", text, count=1) if _AROUND.match(text) else text) != text:
        text = shorter
    return whole(text, is_cut)


def repeats(question: str, answer: str) -> bool:
    """Whether an answer only repeats words of its question in their order, at least MIN_REPEATED of them. A statement that affirms a
    yes-or-no question is an answer, whatever its words."""
    asked, said = folded_words(question), folded_words(answer)
    starts = range(len(asked) - len(said) + 1)
    is_said_again = len(said) >= MIN_REPEATED and any(asked[at : at + len(said)] == said for at in starts)
    return is_said_again and not affirms_by_saying(question, answer)
