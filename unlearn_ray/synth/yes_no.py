"""Finds answers that affirm a yes-or-no question by repeating it as a statement: `Est-ce que la chouette est blanche ?` -> `La chouette est
blanche.`

In many languages such a statement has the question's own words, in their order. It differs from an echo of the question in this:

- The question is a question (it ends with a mark, or has an interrogative particle), and the statement is not.
- Neither asks for anything but yes or no: there is no `who`, `which`, `or`.
- The statement is the question's last sentence without its interrogative part. That part is a word before it (`czy`, `est-ce que`, `is it
  true that`), a particle or tag after it (`吗`, `mı`, `, right`), or only the mark if the sentence does not begin with its verb.
"""

import re
from collections.abc import Sequence

from unlearn_ray.words import fold, folded_words

_MARKS = "?？؟;⸮"
_MAX_TAG = 3  # words: `, isn't it?`
_TRAILING = re.compile(r"[\s\"'”’»」』)*_]+$")
_SENTENCE = re.compile(r"(?<=[.!?？。！:：\n])\s*")


def _words(text: str) -> frozenset[str]:
    return frozenset(word for each in text.split() for word in folded_words(each))


# Words that ask for something else than yes or no, at any place.
_ASKING = _words(
    "who whom whose which where when why how or "
    "wer wen wem wessen welche welcher welches wo wann warum wieso wie oder "
    "qui quel quelle quels quelles quand pourquoi comment combien lequel laquelle ou "
    "quien quienes cual cuales donde cuando cuanto cuanta cuantos cuantas "
    "quem qual quais onde quando porque quanto quanta quantos quantas "
    "chi quale quali dove perche "
    "wie wat welk welke waar wanneer waarom hoe "
    "vem vad vilken vilket vilka var nar varfor hur eller hvem hvad hva hvilken hvilket hvor hvornar hvorfor hvordan "
    "kuka mika missa milloin miksi miten vai "
    "kto kogo komu jaki jaka jakie ktory ktora ktore gdzie kiedy dlaczego jak ile lub "
    "kdo koho ktery ktera ktere kde kdy proc kolik nebo "
    "кто кого кому кем чей чья какой какая какое какие который которая которое которые где куда когда почему зачем как сколько или "
    "хто який яка яке які де коли чому скільки або "
    "kim kimin hangi nerede ne zaman neden nasil kac veya "
    "siapa apa mana kapan mengapa bagaimana berapa atau "
    "ποιος ποια ποιο πού πότε γιατί πώς ή "
    "من ما ماذا متى أين لماذا كيف كم أي أم أو "
    "מי מה איפה מתי למה איך כמה או "
    "कौन किस किसने किसका कहाँ कब क्यों कैसे कितना कितने कितनी या अथवा"
)
_STEMS = tuple(  # of inflected ones
    fold(each)
    for each in "как котор скольк якого якому яких jaki któr kter welch quel cual cuant quant किस कित".split()
)
# The same in scripts without spaces and in Korean, where they are attached to other words.
_ASKING_INSIDE = tuple(
    fold(each)
    for each in "什么 什麼 谁 誰 哪 怎 为何 為何 多少 几个 幾個 还是 還是 或者 何 どこ どの どれ どち なぜ いつ どう どんな いく それとも または 무엇 누구 어디 언제 왜 어떤 어떻게 몇 아니면".split()
)
# First words of questions that ask for a thing, or begin with their verb. Without its mark such a question is an echo.
_FIRST = _words(
    "what is are was were am do does did can could will would shall should may might must has have had isn't aren't wasn't doesn't didn't "
    "was ist sind war waren hat haben hatte kann konnen wird werden darf soll muss gibt "
    "est sont etait que qu' es son era fue esta estan tiene puede hay ha e sao foi tem pode che cosa sono ha "
    "is zijn heeft ar kan er har on onko co czym to что чем क्या wat apakah"
)
# Words after which the statement begins. Those of the second line begin a question of another kind if they are its first word.
_BEFORE = _words("czy чи هل क्या ali apakah zda")
_BEFORE_IF_INSIDE = _words("that if whether que si se che dass ob что що że že dat att om at أن कि ότι")
_PARTICLES = _words("mi mı mu mü midir mudur ли ka")
_PARTICLES_INSIDE = re.compile(r"(吗|嗎|么|吧|か|ですか|ますか)$")


def affirms_by_saying(question: str, answer: str) -> bool:
    """Whether an answer that consists of its question's words, in their order, affirms it."""
    asked, said = _TRAILING.sub("", question), _TRAILING.sub("", answer)
    if not asked or asked[-1] not in _MARKS or said.endswith(tuple(_MARKS)):
        return False
    sentence = [part for part in _SENTENCE.split(asked.rstrip(_MARKS + " ")) if part.strip()][-1]
    words, own = folded_words(sentence), folded_words(said)
    at = next((at for at in range(len(words) - len(own) + 1) if words[at : at + len(own)] == own), None)
    if at is None or not own or _asks(own) or any(each in fold(said) for each in _ASKING_INSIDE):
        return False
    before, after = words[:at], words[at + len(own) :]
    if before and not _asks(before[:-1]) and _is_before(before):
        return not after or _is_tag(after, sentence)
    return not before and own[0] not in _FIRST and (not after or _is_tag(after, sentence))


def _asks(words: Sequence[str]) -> bool:
    return any(word in _ASKING or word.startswith(_STEMS) for word in words)


def _is_before(words: Sequence[str]) -> bool:
    return words[-1] in _BEFORE or (len(words) > 1 and words[-1] in _BEFORE_IF_INSIDE)


def _is_tag(words: Sequence[str], sentence: str) -> bool:
    """Whether the rest of a question is only a tag that asks for agreement."""
    if len(words) > _MAX_TAG:
        return False
    if _PARTICLES_INSIDE.search(sentence) or (len(words) == 1 and words[0] in _PARTICLES):
        return True
    tag = re.split("[,，、،]", sentence)
    return len(tag) > 1 and folded_words(tag[-1]) == tuple(words)
