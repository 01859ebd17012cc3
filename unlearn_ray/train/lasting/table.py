"""All terms by the names that `finetune.lasting` gives them."""

from collections.abc import Callable, Mapping

from unlearn_ray.train.lasting.meta import meta
from unlearn_ray.train.lasting.sam import sam

LASTING: Mapping[str, Callable[..., None]] = {"meta": meta, "sam": sam}
