// The three passes over latents that a step needs besides the network.
#include <algorithm>
#include <stdexcept>
#include <string>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "formulas.h"
#include "tensor.h"

namespace nb = nanobind;

// Compiled once for each instruction set and chosen when the module loads.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FOR_EVERY_CPU
#endif

namespace sdfast {
namespace {

FOR_EVERY_CPU void scale_into(float* __restrict out, const float* __restrict in, float factor, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) out[k] = factor * in[k];
}

FOR_EVERY_CPU void add_scaled(float* __restrict out, const float* __restrict in, float factor, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) out[k] += factor * in[k];
}

FOR_EVERY_CPU void denoise_one(float* __restrict out, const float* __restrict predicted, const float* __restrict x,
                               Denoise d, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) out[k] = d.skip * x[k] + d.scale * predicted[k];
}

FOR_EVERY_CPU void denoise_two(float* __restrict out, const float* __restrict unguided, const float* __restrict guided,
                               const float* __restrict x, Denoise d, float scale, std::int64_t n) {
    for (std::int64_t k = 0; k < n; ++k) out[k] = d.skip * x[k] + d.scale * guide(unguided[k], guided[k], scale);
}

std::int64_t rows_of(const Tensor& many, const Tensor& one, const char* name) {
    const std::int64_t rows = one.count() == 0 ? 0 : many.count() / one.count();
    const bool fits = many.shape.size() == one.shape.size() && !one.shape.empty() && many.count() == rows * one.count() &&
                      std::equal(one.shape.begin() + 1, one.shape.end(), many.shape.begin() + 1);
    if (!fits || rows < 1 || rows > 2)
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
    const std::int64_t rows = rows_of(latent, x, "latent"), n = x.count();
    float* out = floats(latent, "latent");
    float* times = floats(timestep, "timestep");
    const float* in = floats(x, "x");
    if (timestep.count() != latent.shape[0]) throw std::invalid_argument("timestep must have one value for each row of latent");
    for (std::int64_t row = 0; row < rows; ++row)
        scale_into(out + row * n, in, static_cast<float>(input_scale(sigma)), n);
    std::fill_n(times, timestep.count(), static_cast<float>(t));
}

void guide_into(const Tensor& denoised, const Tensor& predicted, const Tensor& x, double sigma, double guidance,
                const std::string& prediction) {
    same_shape(denoised, x, "denoised and x");
    if (denoised.data == x.data) throw std::invalid_argument("denoised must not be x itself");
    const std::int64_t rows = rows_of(predicted, x, "predicted"), n = x.count();
    const Denoise d = denoise_coefficients(prediction_named(prediction), sigma);
    float* out = floats(denoised, "denoised");
    const float *in = floats(x, "x"), *net = floats(predicted, "predicted");
    if (rows == 1)
        denoise_one(out, net, in, d, n);
    else
        denoise_two(out, net, net + n, in, d, static_cast<float>(guidance), n);
}

void combine(const Tensor& out, const std::vector<double>& coefficients, const std::vector<const Tensor*>& sources) {
    if (sources.empty() || sources.size() != coefficients.size())
        throw std::invalid_argument("combine needs one coefficient for each source, and at least one");
    float* target = floats(out, "out");
    for (const Tensor* source : sources) {
        if (source == nullptr) throw std::invalid_argument("a source is None; every source must be a tensor");
        same_shape(out, *source, "out and every source");
        floats(*source, "a source");
    }
    // A block of the result stays in the first cache level while every source adds to it: each latent is
    // read once, out is written once, and out may be one of the sources.
    constexpr std::int64_t block = 2048;
    alignas(64) float sum[block];
    for (std::int64_t start = 0; start < out.count(); start += block) {
        const std::int64_t n = std::min(block, out.count() - start);
        scale_into(sum, static_cast<const float*>(sources[0]->data) + start, static_cast<float>(coefficients[0]), n);
        for (std::size_t k = 1; k < sources.size(); ++k)
            add_scaled(sum, static_cast<const float*>(sources[k]->data) + start, static_cast<float>(coefficients[k]), n);
        std::copy_n(sum, n, target + start);
    }
}

}  // namespace

void bind_latents(nb::module_& module) {
    module.def("prepare", &prepare, nb::arg("latent"), nb::arg("timestep"), nb::arg("x"), nb::arg("sigma"), nb::arg("t"),
               nb::call_guard<nb::gil_scoped_release>(),
               "latent [G·B, …] = x [B, …] / √(σ² + 1), G times over; timestep [G·B] = t.");
    module.def("guide", &guide_into, nb::arg("denoised"), nb::arg("predicted"), nb::arg("x"), nb::arg("sigma"),
               nb::arg("guidance"), nb::arg("prediction"), nb::call_guard<nb::gil_scoped_release>(),
               "denoised [B, …] from the network's output [G·B, …] (unguided rows first) and x [B, …].");
    module.def("combine", &combine, nb::arg("out"), nb::arg("coefficients"), nb::arg("sources"),
               nb::call_guard<nb::gil_scoped_release>(), "out = Σ cᵢ · sourceᵢ in one pass; out may be a source.");
}

}  // namespace sdfast
