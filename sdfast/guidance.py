"""Guidance: how far the network's two answers, with and without the prompt, are driven apart.

Classifier-free guidance (arXiv:2207.12598) takes D = D_u + scale · (D_c − D_u), with D_c denoised
under the prompt and D_u under the negative one. Two refinements:

rescale (arXiv:2305.08891, §3.4): large scales burn pictures out, so v, the network's answer in
    v-space whatever it predicts, gets back a part φ of the deviation that it has under the prompt
    alone: v ← φ · v · std(v_c) / std(v) + (1 − φ) · v, for each image by itself
interval (arXiv:2404.07724): at high noise levels guidance costs variety and at low ones it does
    nothing, so it acts between two of them; elsewhere D = D_c, which is half the work

The arithmetic is `_core.guide`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guidance:
    """scale: ≥ 0; 1 is D_c itself
    rescale: φ, 0 (none)…1
    interval: noise levels (low, high), 0 ≤ low < high; guidance acts where low < σ ≤ high, and
        without an interval everywhere
    """

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def acts(self, sigma: float) -> bool:
        """Whether the unguided answer has a part in D at this noise level."""
        if self.scale == 1:
            return False
        return self.interval is None or self.interval[0] < sigma <= self.interval[1]
