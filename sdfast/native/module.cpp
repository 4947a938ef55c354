// sdfast._core: what the denoising loop does between two calls of the network.
#include "tensor.h"

NB_MODULE(_core, module) {
    module.doc() = "Native passes over latents and noise; see the headers in sdfast/native.";
    sdfast::bind_tensor(module);
    sdfast::bind_latents(module);
    sdfast::bind_noise(module);
    sdfast::bind_blending(module);
}
