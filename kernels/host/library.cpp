// All kernels for the host, in one translation unit. Build with -std=c++17 -ffp-contract=off -fPIC -shared.
#include "fiber.cpp"
#include "launch.cpp"

#include "../categorical.cu"
#include "../corrupt.cu"
#include "../posterior.cu"

EXPORT(categorical_f32)
EXPORT(categorical_bf16)
EXPORT(categorical_f16)
EXPORT(corrupt)
EXPORT(posterior_f32)
EXPORT(posterior_bf16)
EXPORT(posterior_f16)
