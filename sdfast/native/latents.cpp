// The three passes over latents that a step needs besides the network.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "every_cpu.h"
#include "formulas.h"
#include "tensor.h"

namespace nb = nanobind;

namespace sdfast {
namespace {

FOR_EVERY_CPU void scale_into(float* __restrict out, const float* __restrict in, float factor, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) out[k] = factor * in[k];
}

FOR_EVERY_CPU void scale_into_both(float* __restrict first, float* __restrict second, const float* __restrict in,
                                   float factor, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) first[k] = second[k] = factor * in[k];
}

// out = Σ cₖ · sourceₖ: every latent is read once and out written once. out may be a source, which
// element by element does no harm.
template <std::size_t terms>
[[gnu::always_inline]] inline void weighted_sum_of(float* out, const float* const* sources, const float* coefficients,
                                                   std::int64_t n) {
    const float* source[terms];
    float c[terms];
    std::copy_n(sources, terms, source);
    std::copy_n(coefficients, terms, c);
#pragma GCC ivdep
    for (std::int64_t k = 0; k < n; ++k) {
        float sum = c[0] * source[0][k];
        for (std::size_t term = 1; term < terms; ++term) sum += c[term] * source[term][k];
        out[k] = sum;
    }
}

constexpr std::size_t most_terms = 6;

FOR_EVERY_CPU void weighted_sum(float* out, const float* const* sources, const float* c, std::size_t terms, std::int64_t n) {
    switch (terms) {
        case 1: return weighted_sum_of<1>(out, sources, c, n);
        case 2: return weighted_sum_of<2>(out, sources, c, n);
        case 3: return weighted_sum_of<3>(out, sources, c, n);
        case 4: return weighted_sum_of<4>(out, sources, c, n);
        case 5: return weighted_sum_of<5>(out, sources, c, n);
        default: return weighted_sum_of<most_terms>(out, sources, c, n);
    }
}

// The same in double, for coefficients above wide_from.
FOR_EVERY_CPU void add_wide(double* __restrict sum, const float* __restrict source, double c, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) sum[k] += c * static_cast<double>(source[k]);
}

FOR_EVERY_CPU void denoise_one(float* __restrict out, const float* __restrict predicted, const float* __restrict x,
                               float skip, float scale, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) out[k] = skip * x[k] + scale * predicted[k];
}

FOR_EVERY_CPU void denoise_two(float* __restrict out, const float* __restrict unguided, const float* __restrict guided,
                               const float* __restrict x, float skip, float scale, float guidance, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) out[k] = skip * x[k] + scale * guide(unguided[k], guided[k], guidance);
}

FOR_EVERY_CPU void blend_one(float* out, const float* x, const float* kept, const float* __restrict mask, std::int64_t n) {
#pragma GCC ivdep
    for (std::int64_t k = 0; k < n; ++k) out[k] = blend(x[k], kept[k], mask[k]);
}

// The factor of CFG rescale for one image. Sums in double, in eight lanes: a fixed order, so that every CPU finds the
// same factor. The deviations are unbiased, but their ratio needs no division by n − 1.
FOR_EVERY_CPU double rescale_of(const float* unguided, const float* guided, const float* x, Denoise v, double guidance,
                                double phi, std::int64_t n) {
    constexpr std::int64_t lanes = 8;
    double guided_sum[lanes] = {}, guided_squares[lanes] = {}, sum[lanes] = {}, squares[lanes] = {};
    const auto add = [&](std::int64_t lane, std::int64_t k) {
        const double skipped = v.skip * x[k], with = skipped + v.scale * guided[k];
        const double mixed = skipped + v.scale * guide<double>(unguided[k], guided[k], guidance);
        guided_sum[lane] += with;
        guided_squares[lane] += with * with;
        sum[lane] += mixed;
        squares[lane] += mixed * mixed;
    };
    const std::int64_t whole = n / lanes * lanes;
    for (std::int64_t start = 0; start < whole; start += lanes)
        for (std::int64_t lane = 0; lane < lanes; ++lane) add(lane, start + lane);
    for (std::int64_t k = whole; k < n; ++k) add(k - whole, k);
    const auto total = [](const double* of) { return std::accumulate(of, of + lanes, 0.0); };
    const auto spread = [&](const double* first, const double* second) {
        return std::max(0.0, total(second) - total(first) * total(first) / static_cast<double>(n));
    };
    return rescale_factor(spread(guided_sum, guided_squares), spread(sum, squares), phi);
}

// How often `many` holds `one` along its first axis. wider: its second axis may go on beyond.
std::int64_t rows_of(const Tensor& many, const Tensor& one, const char* name, bool wider = false) {
    const std::size_t axes = one.shape.size(), from = wider && axes > 2 ? 2 : 1;
    const bool alike = many.shape.size() == axes && axes >= from && one.count() > 0 &&
                       std::equal(one.shape.begin() + from, one.shape.end(), many.shape.begin() + from) &&
                       (from == 1 || many.shape[1] >= one.shape[1]);
    const std::int64_t rows = alike && many.shape[0] % one.shape[0] == 0 ? many.shape[0] / one.shape[0] : 0;
    if (rows < 1 || rows > 2)
        throw std::invalid_argument(std::string(name) + " must hold x once, or twice for guidance, along its first axis");
    return rows;
}

Prediction prediction_named(const std::string& name) {
    if (name == "epsilon") return Prediction::epsilon;
    if (name == "v_prediction") return Prediction::v;
    if (name == "sample") return Prediction::sample;
    throw std::invalid_argument("prediction '" + name + "' is unknown; use epsilon, v_prediction or sample");
}

void prepare(const Tensor& latent, const Tensor& timestep, const Tensor& x, double sigma, double t) {
    const std::int64_t rows = rows_of(latent, x, "latent", true), n = x.count();
    apart(latent, x, "latent and x");
    float* out = floats(latent, "latent");
    float* times = floats(timestep, "timestep");
    const float* in = floats(x, "x");
    if (timestep.count() != latent.shape[0]) throw std::invalid_argument("timestep must have one value for each row of latent");
    const float factor = static_cast<float>(input_scale(sigma));
    const std::int64_t images = x.shape[0], image = n / images, row = latent.count() / latent.shape[0], half = images * row;
    const std::int64_t pieces = row == image ? 1 : images, piece = n / pieces;  // one where nothing lies between images
    for (std::int64_t k = 0; k < pieces; ++k) {
        if (rows == 1)
            scale_into(out + k * row, in + k * piece, factor, piece);
        else
            scale_into_both(out + k * row, out + half + k * row, in + k * piece, factor, piece);
    }
    std::fill_n(times, timestep.count(), static_cast<float>(t));
}

void guide_into(const Tensor& denoised, const Tensor& predicted, const Tensor& x, double sigma, double guidance,
                const std::string& prediction, double rescale) {
    same_shape(denoised, x, "denoised and x");
    apart(denoised, x, "denoised and x");
    apart(denoised, predicted, "denoised and predicted");
    const std::int64_t rows = rows_of(predicted, x, "predicted"), n = x.count(), image = n / x.shape[0];
    const Denoise plain = denoise_coefficients(prediction_named(prediction), sigma);
    float* out = floats(denoised, "denoised");
    const float *in = floats(x, "x"), *net = floats(predicted, "predicted");
    if (rows == 1) return denoise_one(out, net, in, static_cast<float>(plain.skip), static_cast<float>(plain.scale), n);
    const auto denoise = [&](Denoise d, std::int64_t start, std::int64_t count) {
        denoise_two(out + start, net + start, net + n + start, in + start, static_cast<float>(d.skip),
                    static_cast<float>(d.scale), static_cast<float>(guidance), count);
    };
    if (rescale == 0.0) return denoise(plain, 0, n);
    const Denoise v = v_part(plain, sigma);
    for (std::int64_t start = 0; start < n; start += image) {
        const double factor = rescale_of(net + start, net + n + start, in + start, v, guidance, rescale, image);
        denoise(rescaled(plain, sigma, factor), start, image);
    }
}

void blend_into(const Tensor& out, const Tensor& x, const Tensor& kept, const Tensor& mask) {
    same_shape(out, x, "out and x");
    same_shape(out, kept, "out and kept");
    float* target = floats(out, "out");
    const float *fresh = floats(x, "x"), *old = floats(kept, "kept"), *weights = floats(mask, "mask");
    if (fresh != target) apart(out, x, "out and an x that is another tensor");
    if (old != target) apart(out, kept, "out and a kept that is another tensor");
    apart(out, mask, "out and mask");
    const auto& s = out.shape;
    if (s.size() != 4 || mask.shape.size() != 4 || mask.shape[0] != s[0] || mask.shape[1] != 1 || mask.shape[2] != s[2] ||
        mask.shape[3] != s[3])
        throw std::invalid_argument("mask must be [B, 1, h, w] for latents [B, C, h, w]");
    const std::int64_t plane = s[2] * s[3];
    for (std::int64_t k = 0; k < s[0] * s[1]; ++k)
        blend_one(target + k * plane, fresh + k * plane, old + k * plane, weights + k / s[1] * plane, plane);
}

void combine_wide(float* target, std::int64_t count, const std::vector<double>& coefficients,
                  const std::vector<const Tensor*>& sources) {
    constexpr std::int64_t block = 2048;
    alignas(64) double sum[block];
    for (std::int64_t start = 0; start < count; start += block) {
        const std::int64_t n = std::min(block, count - start);
        std::fill_n(sum, n, 0.0);
        for (std::size_t k = 0; k < sources.size(); ++k)
            add_wide(sum, static_cast<const float*>(sources[k]->data) + start, coefficients[k], n);
        for (std::int64_t k = 0; k < n; ++k) target[start + k] = static_cast<float>(sum[k]);
    }
}

void combine(const Tensor& out, const std::vector<double>& coefficients, const nb::sequence& given) {
    const nb::tuple kept(given);  // holds every source while the pass runs
    std::vector<const Tensor*> sources;
    for (const nb::handle source : kept) {
        if (!nb::isinstance<Tensor>(source)) throw nb::type_error("every source must be a Tensor");
        sources.push_back(&nb::cast<const Tensor&>(source));
    }
    if (sources.empty() || sources.size() != coefficients.size())
        throw std::invalid_argument("combine needs one coefficient for each source, and at least one");
    float* target = floats(out, "out");
    for (const Tensor* source : sources) {
        same_shape(out, *source, "out and every source");
        if (floats(*source, "a source") != target) apart(out, *source, "out and a source that is another tensor");
    }
    const nb::gil_scoped_release unlocked;
    if (std::any_of(coefficients.begin(), coefficients.end(), [](double c) { return std::abs(c) > wide_from; }))
        return combine_wide(target, out.count(), coefficients, sources);
    // In blocks that stay in the first cache level: the sum of the first terms when there are more than one pass takes.
    constexpr std::int64_t block = 4096;
    alignas(64) float sum[block];
    for (std::int64_t start = 0; start < out.count(); start += block) {
        const std::int64_t n = std::min(block, out.count() - start);
        std::array<const float*, most_terms> from;
        std::array<float, most_terms> by;
        std::size_t terms = 0;
        for (std::size_t k = 0; k < sources.size(); ++k) {
            if (terms == most_terms) {
                weighted_sum(sum, from.data(), by.data(), terms, n);
                from[0] = sum, by[0] = 1.0f, terms = 1;
            }
            from[terms] = static_cast<const float*>(sources[k]->data) + start;
            by[terms++] = static_cast<float>(coefficients[k]);
        }
        weighted_sum(target + start, from.data(), by.data(), terms, n);
    }
}

}  // namespace

void bind_latents(nb::module_& module) {
    module.def("prepare", &prepare, nb::arg("latent"), nb::arg("timestep"), nb::arg("x"), nb::arg("sigma"), nb::arg("t"),
               nb::call_guard<nb::gil_scoped_release>(),
               "latent [G·B, …] = x [B, …] / √(σ² + 1), G times over; timestep [G·B] = t.");
    module.def("blend", &blend_into, nb::arg("out"), nb::arg("x"), nb::arg("kept"), nb::arg("mask"),
               nb::call_guard<nb::gil_scoped_release>(), "out = mask · x + (1 − mask) · kept; out may be x or kept.");
    module.def("guide", &guide_into, nb::arg("denoised"), nb::arg("predicted"), nb::arg("x"), nb::arg("sigma"),
               nb::arg("guidance"), nb::arg("prediction"), nb::arg("rescale") = 0.0, nb::call_guard<nb::gil_scoped_release>(),
               "denoised [B, …] from the network's output [G·B, …] (unguided rows first) and x [B, …].");
    module.def("combine", &combine, nb::arg("out"), nb::arg("coefficients"), nb::arg("sources"),
               "out = Σ cᵢ · sourceᵢ in one pass; out may be a source.");
}

}  // namespace sdfast
