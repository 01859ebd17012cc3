"""The table of a run's stages, in order. Plan, pipeline, command line, status and release read it."""

from unlearn_ray.stages.answers import ANSWERS
from unlearn_ray.stages.common import COMMON
from unlearn_ray.stages.dataset import DATASET
from unlearn_ray.stages.evaluate import EVALUATE
from unlearn_ray.stages.finetune import FINETUNE
from unlearn_ray.stages.general import GENERAL_POOL
from unlearn_ray.stages.mixture import MIXTURE
from unlearn_ray.stages.questions import QUESTIONS
from unlearn_ray.stages.stage import Stage

STAGES: tuple[Stage, ...] = (QUESTIONS, COMMON, ANSWERS, GENERAL_POOL, DATASET, MIXTURE, FINETUNE, EVALUATE)
COMMANDS = tuple(dict.fromkeys(stage.command for stage in STAGES))  # the steps that a user can select
