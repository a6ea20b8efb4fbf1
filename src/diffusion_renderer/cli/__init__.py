"""The command line: parse, call one function below, write through `io`.

``diffusion-renderer --help`` and mistakes in the options are answered without loading torch: every command's options live in
a frozen dataclass, and what the command needs is imported when it runs.
"""

from diffusion_renderer.cli.app import main

__all__ = ["main"]
