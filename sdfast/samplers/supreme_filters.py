"""What supreme does to pictures and noise besides solving: filters on NumPy arrays [B, C, H, W].

None of it is linear in the latents, which is why supreme has no program. Every mean, deviation and
norm is of one image of the batch.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

IMAGE = (1, 2, 3)
DIMS = {1: (1,), 2: (2, 3), 3: (1, 2, 3)}  # modulation_dims: channels, space, both


def _neighbours(x: Any) -> list[tuple[int, int, Any]]:
    """(dy, dx, x shifted by them) over 3 × 3, mirrored at the edges without repeating them."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    return [
        (dy, dx, padded[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width])
        for dy, dx in product((-1, 0, 1), repeat=2)
    ]


def gaussian_blur(x: Any) -> Any:
    """3 × 3, deviation 1.5 pixels."""
    side = float(np.exp(-1 / (2 * 1.5**2)))
    taps = {-1: side, 0: 1.0, 1: side}
    return sum(taps[dy] * taps[dx] * y for dy, dx, y in _neighbours(x)) / (1 + 2 * side) ** 2


def joint_bilateral_blur(x: Any, guide: Any) -> Any:
    """x averaged over 3 × 3 where guide has about one colour: deviations 1.5 pixels and 0.1, the
    distance of colours being Σ |difference| over channels."""
    total, weights = 0.0, 0.0
    for (dy, dx, y), (_, _, colour) in zip(_neighbours(x), _neighbours(guide), strict=True):
        distance = np.abs(colour - guide).sum(1, keepdims=True)
        weight = np.exp(-(dy * dy + dx * dx) / (2 * 1.5**2) - distance**2 / (2 * 0.1**2))
        total, weights = total + weight * y, weights + weight
    return total / weights


def sharpened(denoised: Any, x: Any, amount: float) -> Any:
    """Edges up by an unsharp mask and by what the bilateral blur of x under D's edges changes."""
    smoothing = joint_bilateral_blur(x, denoised) - x
    return denoised + amount * (denoised - gaussian_blur(denoised)) + amount * smoothing


def centred(denoised: Any, amount: float) -> Any:
    """Every channel's mean toward 0."""
    return denoised - amount * denoised.mean((2, 3), keepdims=True)


def normalized(denoised: Any, amount: float) -> Any:
    """Every channel's deviation toward 1."""
    deviation = denoised.std((2, 3), keepdims=True, ddof=1)
    return denoised + amount * (denoised / deviation - denoised)


def away_from(denoised: Any, previous: Any, x: Any, amount: float) -> Any:
    """Along the part of the last correction that is perpendicular to this one."""
    a, b = 2 * x - denoised, 2 * x - previous
    along = (a * b).sum(IMAGE, keepdims=True) / (a * a).sum(IMAGE, keepdims=True)
    return denoised + amount * (b - a * along)


def _norm(x: Any) -> Any:
    return np.sqrt((x * x).sum(IMAGE, keepdims=True))


def _calm(x: Any, strength: float, dims: tuple[int, ...]) -> Any:
    """1 + 1/(ρ|I| + 1): more where x deviates little over dims (ρ)."""
    away = x - x.mean(IMAGE, keepdims=True)
    return 1 + 1 / (away.std(dims, keepdims=True, ddof=1) * abs(strength) + 1)


def _blended(modulated: Any, plain: Any, strength: float) -> Any:
    modulated = modulated * (_norm(plain) / _norm(modulated))
    return strength * modulated + (1 - strength) * plain


def by_intensity(noise: Any, x: Any, strength: float, dims: tuple[int, ...]) -> Any:
    """More noise where x is calm."""
    return _blended(noise * _calm(x, strength, dims), noise, strength)


def by_frequency(noise: Any, x: Any, strength: float, dims: tuple[int, ...]) -> Any:
    """More noise where x is calm, and more of it at high frequencies (raw indices, unshifted)."""
    height, width = noise.shape[2:]
    u, v = np.arange(height)[:, None] / height, np.arange(width) / width
    gain = 2 - np.exp(-(u * u + v * v) * strength**2)
    spectrum = np.fft.fft2(noise * _calm(x, strength, dims)) * gain
    return _blended(np.fft.ifft2(spectrum).real, noise, strength)


def by_spectral_signum(noise: Any, x: Any, strength: float, dims: tuple[int, ...]) -> Any:
    """The noise's strongest frequencies weaker and its weakest stronger."""
    spectrum = np.fft.fftn(noise, axes=dims)
    level = np.log(np.abs(spectrum))
    q05, q95, q100 = np.quantile(np.abs(level), (0.05, 0.95, 1.0), axis=IMAGE, keepdims=True)
    high = np.where(level > q95, 1 - np.minimum(0.5, (level - q95) / (q100 - q95)), 1.0)
    low = np.where(level < q05, 1 + np.minimum(0.5, 1 - level / q05), 1.0)
    return np.fft.ifftn(spectrum * (high * low) ** strength, axes=dims).real


MODULATIONS = {
    "intensity": by_intensity,
    "frequency": by_frequency,
    "spectral_signum": by_spectral_signum,
}
