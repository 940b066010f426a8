// What the gate of an MLP goes through. CPU twin: Activation of src/models/layers/elementwise.rs; equal within rounding.
#pragma once

#include "common.cuh"

/// As the host numbers them.
enum Activation : uint32_t { SILU, GELU_TANH };

/// x / (1 + e^−z): of silu z is x, of gelu's tanh approximation 2 √(2/π) (x + 0.044715 x³).
__device__ __forceinline__ float activated(uint32_t activation, float x) {
  float z = activation == GELU_TANH ? 1.595769122f * (x + 0.044715f * x * x * x) : x;
  return x / (1.0f + __expf(-z));
}
