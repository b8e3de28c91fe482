"""Scorers of benchmarks beside CoIN, each the rule of the benchmark's own script.

`edit_similarity` is TriGap's, from Prism (github.com/LAMDA-CL/Prism at 7154be2,
`backbone/shared/eval/eval_ucit.py`). Those named `dcl_` are MLLM-DCL's, from MCITlib
(github.com/Ghy0501/MCITlib at 2956dfd, `LoRA-FT/llava/eval/CoIN/`), which are those of
github.com/bjzhb666/MLLM-CL at 80bf389. Of several reference answers the best match counts, which
MLLM-DCL's scripts don't have: their answers are one text.
"""

from __future__ import annotations

from collections.abc import Callable

from cmoe.tasks.published_scorers import levenshtein
from cmoe.tasks.scorer import Target

_REFUSAL = "Unanswerable"  # so written, it makes a prediction wrong
_EXACT = frozenset({"AI2D", "TQA", "VQA", "SciVerse"})  # what pictures' names begin with


def edit_similarity(prediction: str, target: Target) -> float:
    """One less the edit distance in parts of the longer text: `anls` without its threshold.

    `anls_single`: in lower case, without surrounding white space. An empty text is like an empty
    one alone.
    """
    said = prediction.strip()
    return max(_alike(said, answer.strip()) for answer in target.references)


def _alike(said: str, answer: str) -> float:
    if not said or not answer:
        return float(said == answer)
    distance = levenshtein(said.lower(), answer.lower())
    return max(0.0, 1 - distance / max(len(said), len(answer)))  # lower case may be longer


def dcl_words(prediction: str, target: Target) -> float:
    """1 where the text has the answer, whatever the case, beside a space or a mark; else 0.

    `eval_ai2d.py`, of remote sensing and autonomous driving. An answer of several words may stand
    anywhere. One of a single word loses its periods; in a text with spaces it needs a space before
    or behind it, or a period or a comma behind; in a text without, it may stand anywhere.
    """
    return _best(prediction, target, _has_words)


def _has_words(said: str, answer: str) -> bool:
    if " " in answer:
        return answer in said
    answer = answer.replace(".", "")
    if " " not in said:
        return answer in said
    return any(found in said for found in (f" {answer}", f"{answer} ", f"{answer}.", f"{answer},"))


def dcl_contains(prediction: str, target: Target) -> float:
    """1 where the text contains the answer, whatever the case; else 0.

    `eval_pvqa.py`, of the medical domain.
    """
    return _best(prediction, target, lambda said, answer: answer in said)


def dcl_science(prediction: str, target: Target) -> float:
    """By the data set that the picture's name tells: the same text, or a share of those asked for.

    `eval_sci.py`, of science. Pictures named `AI2D_`, `TQA_`, `VQA_` or `SciVerse_`: 1 for the same
    text, whatever the case. Others are maps: where the question says `Which states`, the share of
    the answer's states, parted by commas, that are among the text's; else 1 where the text contains
    the answer.

    Raises:
        ValueError: The picture's name isn't known.
    """
    if not target.image:
        raise ValueError("the rule goes by the picture's name, and the row has no image")
    # What a data set holds itself is called by its row and its path, with a space between.
    source = target.image.rpartition("/")[2].rpartition(" ")[2].partition("_")[0]
    if source in _EXACT:
        return _best(prediction, target, lambda said, answer: said == answer)
    if "Which states" in target.question:
        return _best(prediction, target, _share)
    return _best(prediction, target, lambda said, answer: answer in said)


def _share(said: str, answer: str) -> float:
    named, wanted = said.split(","), answer.split(",")
    return sum(one in named for one in wanted) / len(wanted)


def dcl_choice(prediction: str, target: Target) -> float:
    """1 where the text is the answer, whatever the case, spaces and periods of the text; else 0.

    `eval_finvis.py`, of finance.
    """
    return _best(
        prediction, target, lambda said, answer: said.replace(" ", "").replace(".", "") == answer
    )


def _best(prediction: str, target: Target, rule: Callable[[str, str], float]) -> float:
    """The best over the answers, both sides in lower case; 0 for a refusal."""
    if _REFUSAL in prediction:
        return 0.0
    return float(max(rule(prediction.lower(), answer.lower()) for answer in target.references))
