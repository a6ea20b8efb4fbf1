"""``python -m diffusion_renderer``: the same as the command ``diffusion-renderer``."""

import sys

from diffusion_renderer.cli import main

if __name__ == "__main__":
    sys.exit(main())
