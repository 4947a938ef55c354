"""Checkpoints with random weights, at the published models' sizes and at tiny ones.

    from sdfast.export import random_checkpoint
    random_checkpoint("sdxl", Path("sdxl-random"))

    from sdfast.export.random_models import single_file
    single_file(Path("sdxl-random"), Path("sdxl-random.safetensors"))

For tests and benchmarks: speed and memory depend on sizes alone.
"""

from .folder import write
from .original import single_file
from .sizes import FAMILIES_OF_CHECKPOINTS

__all__ = ["FAMILIES_OF_CHECKPOINTS", "single_file", "write"]
