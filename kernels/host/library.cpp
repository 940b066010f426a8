// All kernels for the host, in one translation unit. Build with -std=c++17 -ffp-contract=off -fPIC -shared.
#include "fiber.cpp"
#include "launch.cpp"

#include "../categorical.cu"

EXPORT(categorical_f32)
EXPORT(categorical_bf16)
EXPORT(categorical_f16)
