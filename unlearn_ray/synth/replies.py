"""The answer in what a model wrote: without what it only puts around an answer, and without a sentence that was cut off."""

import re

from unlearn_ray.synth.sentences import whole

_EMPHASIS = r"[\s*_#>]*"
_ANSWER = (
    r"(?:(?:final |short |my |the )?(?:answer|response|reply)|a|respuesta|resposta|réponse|antwort|risposta|ответ|الجواب|الإجابة|جواب|उत्तर"
    r"|答案|回答|答え|答|정답|답변|답)"
)
# Only what says nothing at all: a label, the question said again behind one, a courtesy that announces the answer.
_AROUND = re.compile(
    rf"{_EMPHASIS}(?:"
    rf"(?:question|q)\s*[:：][^\n]*\n+{_EMPHASIS}{_ANSWER}\s*[:：]"
    rf"|{_ANSWER}\s*[:：]"
    r"|(?:(?:sure|certainly|of course|absolutely)(?: thing)?[!.,]\s+)?here(?:'s|’s| is) (?:a|an|the|my|your|one)\b[^.:!?\n]{0,60}?"
    r"\b(?:answer|response|reply|sentence|paragraph|summary|continuation)\b[^.:!?\n]{0,40}:"
    r"|(?:sure|certainly|of course|absolutely)(?: thing)?[!.]+(?=\s+[^\W\d_])(?=\s+(?-i:[^a-z]))"
    rf"){_EMPHASIS}",
    re.IGNORECASE,
)


def answer_in(text: str, is_cut: bool) -> str:
    """The answer; "" where nothing whole is left.

    `Sure! Here is a short answer: The owl is Hedwig.` -> `The owl is Hedwig.`

    Args:
        is_cut: the text reached its greatest length: what follows its last whole sentence is left out.
    """
    text = text.strip()
    while (shorter := _AROUND.sub("", text, count=1) if _AROUND.match(text) else text) != text:
        text = shorter
    return whole(text, is_cut)
