// The per-element formulas of the denoising loop: plain functions of numbers, so that a CPU loop and a
// GPU kernel can share them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SDFAST_FORMULA __host__ __device__ inline
#else
#define SDFAST_FORMULA inline
#endif

namespace sdfast {

// What the network predicts from (x, σ); the denoised D = skip · x + scale · prediction.
enum class Prediction { epsilon, v, sample };

struct Denoise {
    double skip, scale;
};

// epsilon: D = x − σ ε.  v: D = x / (σ² + 1) − σ v / √(σ² + 1) (arXiv:2202.00512).  sample: D itself.
SDFAST_FORMULA Denoise denoise_coefficients(Prediction prediction, double sigma) {
    const double variance = sigma * sigma + 1.0;
    switch (prediction) {
        case Prediction::epsilon: return {1.0, -sigma};
        case Prediction::v: return {1.0 / variance, -sigma / std::sqrt(variance)};
        default: return {0.0, 1.0};
    }
}

// The network's input: x in the variance-preserving frame, c_in = 1 / √(σ² + 1).
SDFAST_FORMULA double input_scale(double sigma) { return 1.0 / std::sqrt(sigma * sigma + 1.0); }

// Classifier-free guidance (arXiv:2207.12598).
template <typename Number>
SDFAST_FORMULA Number guide(Number unguided, Number guided, Number scale) {
    return unguided + scale * (guided - unguided);
}

// The part of D that is a multiple of v: D − x / (σ² + 1) = −σ v / √(σ² + 1), whatever the network predicts.
// Its deviations are in the ratio of those of v, so that rescaling needs no v, which σ = 0 does not have.
SDFAST_FORMULA Denoise v_part(Denoise d, double sigma) { return {d.skip - 1.0 / (sigma * sigma + 1.0), d.scale}; }

// CFG rescale (arXiv:2305.08891, §3.4), of v: v ← φ · v · std(v_guided) / std(v) + (1 − φ) · v. This is the factor
// of v from the two variances; an image whose v is constant has nothing to rescale.
SDFAST_FORMULA double rescale_factor(double guided_variance, double variance, double phi) {
    return variance > 0.0 ? phi * std::sqrt(guided_variance / variance) + 1.0 - phi : 1.0;
}

// D with v scaled by that factor: x / (σ² + 1) + factor · v_part.
SDFAST_FORMULA Denoise rescaled(Denoise d, double sigma, double factor) {
    const Denoise v = v_part(d, sigma);
    return {d.skip - v.skip + factor * v.skip, factor * v.scale};
}

// Philox4x32-10 (Salmon et al., SC 2011): four random words for a counter and a key.
SDFAST_FORMULA std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::uint64_t key) {
    std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = 0xD2511F53ull * counter[0], p1 = 0xCD9E8D57ull * counter[2];
        counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<std::uint32_t>(p1),
                   static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<std::uint32_t>(p0)};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return counter;
}

// The normal that PyTorch's CUDA generator gives element `index` in its draw number `draw`: cuRAND's
// Box–Muller on the first two words of the counter (draw, index), which takes the sine.
SDFAST_FORMULA float philox_normal(std::uint64_t seed, std::uint64_t draw, std::uint64_t index) {
    const auto words = philox({static_cast<std::uint32_t>(draw), static_cast<std::uint32_t>(draw >> 32),
                               static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32)},
                              seed);
    constexpr double unit = 0x1p-32;  // in double, so that every compiler rounds to the same float
    const double u = (words[0] + 0.5) * unit, v = (words[1] + 0.5) * unit * 6.283185307179586;
    return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::sin(v));
}

}  // namespace sdfast
