"""Evaluation: renderers and their baselines on clips with ground truth, one command per table.

results = evaluate("forward", EvaluateOptions(suites=("scenes",), baselines=("splitsum", "ssrt")))
"""

from __future__ import annotations

from diffusion_renderer.evaluation.options import EvaluateOptions
from diffusion_renderer.evaluation.published import tasks_of
from diffusion_renderer.evaluation.run import evaluate, export
from diffusion_renderer.evaluation.tasks import TASKS

__all__ = ["TASKS", "EvaluateOptions", "evaluate", "export", "tasks_of"]
