"""Public benchmarks, each with its own published protocol, where the user has the data.

``BENCHMARKS[name]`` knows how its folder is read, what a system is given and must make, which values are compared and by which
metrics; see `Benchmark`. What could not be reproduced stands in its ``limits``, and belongs below its table.
"""

from __future__ import annotations

from diffusion_renderer.evaluation.public.benchmark import Benchmark, Case, Pair
from diffusion_renderer.evaluation.public.interiorverse import INTERIORVERSE
from diffusion_renderer.evaluation.public.mit_intrinsic import MIT_INTRINSIC
from diffusion_renderer.evaluation.public.multi_illumination import MULTI_ILLUMINATION
from diffusion_renderer.evaluation.public.stanford_orb import STANFORD_ORB

__all__ = ["BENCHMARKS", "Benchmark", "Case", "Pair"]

#: The benchmarks by the name of their data set.
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (STANFORD_ORB, MULTI_ILLUMINATION, INTERIORVERSE, MIT_INTRINSIC)
}
