"""What is measured of one answer: a small function a metric, each with its formula and where it comes from.

A metric that does not apply to a probe is None, and the probe is not counted in it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from unlearn_ray.refusals import is_refusal
from unlearn_ray.rows import Group
from unlearn_ray.words import letters_of, num_words, spaced_out, tells

NGRAM_WEIGHTS = ((2, 2 / 3), (3, 4 / 3))
FLUENCY_TOKENS = 256  # RWKU generates no more
_EPSILON = 1e-10  # what open-unlearning adds to a denominator, so that its figures and ours are the same
_MIN_REPEATS = 4
_MAX_REPEATED_WORDS = 8


def fact_recall(answer: str, truths: Sequence[str]) -> float | None:
    """1 if the answer contains one of the truths, case- and accent-folded, as whole words; else 0.

    None where the first truth is no short fact (over `words.MAX_FACT_WORDS` words).
    """
    found = tells(answer, truths)
    return None if found is None else float(found)


def rouge_l_recall(answer: str, reference: str) -> float:
    """LCS(reference, answer) / |reference|, over words: ROUGE-L recall (Lin 2004) with the Porter stemmer, by `rouge-score`.

    Stemmer and words are those of TOFU (arXiv 2401.06121) for English. `rouge-score` by itself drops all but a-z and 0-9, and would compare
    the digits of a Russian sentence alone: our tokenizer keeps the words of every script, and stems those of ASCII letters. RWKU (2406.10890)
    takes the same recall from another package, without a stemmer and with case; the figures differ a little. An empty answer scores 0.
    """
    return float(rouge_l(answer, reference).recall)


def rouge_l(answer: str, reference: str) -> Any:
    """ROUGE-L's precision, recall and fmeasure; see `rouge_l_recall`."""
    return _rouge().score(reference, answer)["rougeL"]


def worst_wording(recalls: Sequence[float], group: Group) -> float:
    """Recall of a fact over its wordings: on forget the highest (one that still tells it is enough), on near and far the lowest."""
    return max(recalls) if group == "forget" else min(recalls)


def sampled_recall(samples: Sequence[str], truths: Sequence[str]) -> float | None:
    """Share of sampled answers that `fact_recall` counts."""
    recalls = [recall for sample in samples if (recall := fact_recall(sample, truths)) is not None]
    return _mean(recalls) if recalls else None


def keyword_leak(leaks: Sequence[Sequence[str]]) -> float | None:
    """Share of sampled answers with at least one leaked term."""
    return sum(bool(leak) for leak in leaks) / len(leaks) if leaks else None


def answer_probability(logprobs: Sequence[float]) -> float | None:
    """exp(mean log p(token)): the answer's probability to the power of 1 / its length (TOFU, arXiv 2401.06121).

    The end of turn is one of the tokens, as in TOFU's and open-unlearning's code: an answer that goes on where it should end is less likely.
    """
    return math.exp(_mean(logprobs)) if logprobs else None


def truth_ratio(right: Sequence[float], wrong: Sequence[Sequence[float]]) -> float | None:
    """R = exp(-mean NLL over wrong answers) / exp(-NLL of the right answer), NLLs per token (TOFU, arXiv 2401.06121).

    Near 0: the right answer is far likelier than wrong ones; near 1: the model can't tell them apart. End of turn and denominator are
    open-unlearning's.
    """
    scored = [logprobs for logprobs in wrong if logprobs]
    if not right or not scored:
        return None
    return math.exp(_mean([_mean(logprobs) for logprobs in scored])) / (math.exp(_mean(right)) + _EPSILON)


def truth_ratio_in(ratio: float, group: Group) -> float:
    """What a truth ratio R counts, so that higher is better: min(R, 1/R) on forget, max(0, 1 - R) on near and far.

    The means of these are what open-unlearning (arXiv 2506.12618) reports: its aggregators `closer_to_1_better` and `true_better`.
    """
    return min(ratio, 1 / (ratio + _EPSILON)) if group == "forget" else max(0.0, 1.0 - ratio)


def choice(right: Sequence[float], wrong: Sequence[Sequence[float]]) -> float | None:
    """1 if the right answer is likelier than each wrong one, else 0; likelier: the higher mean of log p(token), the end of turn's included.

    A multiple choice without letters: what lm-evaluation-harness calls `acc_norm`, per token instead of per byte (as GPT-3 was measured,
    arXiv 2005.14165, section 2.4). A model that knows nothing gets 1 / (1 + number of wrong answers) of them right. Equally likely is not
    likelier. None where the right answer, or no wrong one, was scored.
    """
    scored = [logprobs for logprobs in wrong if logprobs]
    if not right or not scored:
        return None
    return float(prefers(_mean(right), [_mean(logprobs) for logprobs in scored]))


def prefers(right: float, wrong: Sequence[float]) -> bool:
    """Whether the true answer's mean log-probability is above that of each wrong one."""
    return all(right > other for other in wrong)


def exact_memorisation(argmax: Sequence[bool]) -> float | None:
    """Share of the answer's tokens that are the most probable one, teacher-forced (Tirumala et al. 2022, arXiv 2205.10770)."""
    return sum(argmax) / len(argmax) if argmax else None


def extraction_strength(argmax: Sequence[bool]) -> float | None:
    """1 - k/T, k the earliest index from which the whole suffix is reproduced (Carlini et al. 2021, arXiv 2012.07805).

    0 where the last token is not. There open-unlearning's code gives 1/T: its search ends at the last token without looking at it.
    """
    if not argmax:
        return None
    k = next((i for i in range(len(argmax), 0, -1) if not argmax[i - 1]), 0)
    return 1.0 - k / len(argmax)


def fluency(answer: str) -> float:
    """Mean of the 2/3 and 4/3 weighted entropies, in bits, of bi- and trigram frequencies (ROME, arXiv 2202.05262; RWKU, which shows it x 100).

    Over the first 256 words, RWKU's limit. Below that it grows with an answer's length: compare models on the same probes, never figures
    across probe sets.
    """
    tokens = _word_tokens(spaced_out(answer))[:FLUENCY_TOKENS]
    entropies = [
        weight * _entropy([tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]) for n, weight in NGRAM_WEIGHTS
    ]
    return _mean(entropies)


def is_degenerate(answer: str) -> bool:
    """Without a word, or one n-gram (up to 8 words) over and over: 4 times or more in a row, half the answer or more.

    In scripts without spaces the n-grams are of letters, and as many as 8 words have there.
    """
    have = letters_of(answer)
    if not have:
        return True
    longest = math.ceil(_MAX_REPEATED_WORDS * len(have) / num_words(answer))
    for n in range(1, min(longest, len(have) // _MIN_REPEATS) + 1):
        run = 0  # positions in a row that equal the one n before
        for i in range(n, len(have)):
            run = run + 1 if have[i] == have[i - n] else 0
            repeated = run + n
            if repeated >= _MIN_REPEATS * n and 2 * repeated >= len(have):
                return True
    return False


def degenerate(answer: str) -> float:
    """`is_degenerate` as a share."""
    return float(is_degenerate(answer))


def refusal(answer: str) -> float:
    """1 where the answer opens by declining or not knowing (`refusals.is_refusal`), else 0."""
    return float(is_refusal(answer))


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1 / v), 0 if one of them is."""
    return len(values) / sum(1 / value for value in values) if values and all(value > 0 for value in values) else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _entropy(items: Sequence[object]) -> float:
    counts = Counter(items).values()
    return -sum(count / len(items) * math.log2(count / len(items)) for count in counts)


class _Tokenizer:
    """`rouge-score`'s tokenizer interface over words of any script; of ASCII words it gives what the library's own does."""

    def __init__(self, stemmer: Any) -> None:
        self._stemmer = stemmer

    def tokenize(self, text: str) -> list[str]:
        found = (word.rstrip("+#") for word in letters_of(text))
        return [self._stemmer.stem(word) if word.isascii() and len(word) > 3 else word for word in found]


@cache
def _rouge() -> Any:
    # nltk comes with both: half a second that a reader of reports need not wait.
    from nltk.stem.porter import PorterStemmer
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Tokenizer(PorterStemmer()))


def _word_tokens(text: str) -> list[str]:
    """Treebank tokens, as RWKU's `nltk.word_tokenize`, less its split into sentences (that needs a download)."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return list(NLTKWordTokenizer().tokenize(text))
