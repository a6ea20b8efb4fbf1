"""The plan of training the published sizes on many GPUs, as Markdown; docs/training.md says what is assumed.

    python benchmarks/training_plan.py --batch 1536 --device h100 --gpus 8 64

Nothing is trained or downloaded: the real networks are run on tensors without contents, about two minutes on one CPU core.
"""

from __future__ import annotations

import argparse

from diffusion_renderer.training.options import TrainOptions
from diffusion_renderer.training.plan import DEVICES, UTILISATION, plan
from diffusion_renderer.training.presets import PRESETS


def main() -> None:
    """Print one table for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="svd", choices=PRESETS)
    parser.add_argument("--stages", nargs="+", default=["env", "inverse", "forward"])
    parser.add_argument("--batch", type=int, default=1536, help="images per step over all GPUs")
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--device", default="h100", choices=DEVICES)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--utilisation", type=float, default=UTILISATION)
    arguments = parser.parse_args()
    device = DEVICES[arguments.device]
    for stage in arguments.stages:
        made = plan(PRESETS[arguments.preset], stage, TrainOptions(batch=arguments.batch, checkpointing=True))
        print(f"\n`{stage}`, {made.items} items, {device.name}\n")
        print("| GPUs | items each | accumulate | GB per GPU | of which activations | s per step | days |")
        print("|---|---|---|---|---|---|---|")
        for gpus in arguments.gpus:
            pieces = made.fitting(device, gpus)
            memory, seconds = made.memory(gpus, pieces), made.seconds(device, gpus, arguments.utilisation)
            days = arguments.steps * seconds / 86400
            row = (gpus, -(-made.items // gpus), pieces or "does not fit", f"{memory.total / 1e9:.1f}")
            print("|", " | ".join(map(str, (*row, f"{memory.working / 1e9:.1f}", f"{seconds:.2f}", f"{days:.2f}"))), "|")


if __name__ == "__main__":
    main()
