// Dropout:  out = x * m / (1 - p),   m from a hash of (key, index)                          numllama/ops/dropout.py
//
// Rows:    none: a thread takes any WIDTH adjacent elements.
// Fused:   the mask is computed where it is used, forward and backward (the same kernel), and never stored.
// Floor:   reads x, writes out: 2 n elements.

#include "dropout.cuh"

extern "C" __global__ void __launch_bounds__(256) dropout(
    Element* __restrict__ out, const Element* __restrict__ x, Index n, const unsigned* key, unsigned low, unsigned high,
    unsigned threshold, Real scale) {
  const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH, left = n - at;
  if (left <= 0) return;
  const Mask mask(key, low, high, threshold, scale);
  Vector<Element, WIDTH> v = load<WIDTH>(x + at, 0, left, Element());
#pragma unroll
  for (int i = 0; i < WIDTH; i++) v.at[i] = element(real(v.at[i]) * mask.at(at + i));  // a product, so that NaN stays NaN
  store(out + at, v, 0, left);
}
