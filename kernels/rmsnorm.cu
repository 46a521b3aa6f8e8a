// RMSNorm:  out = x * rstd * weight,   rstd = 1 / sqrt(mean(x^2) + eps)                     numllama/ops/rmsnorm.py
//
// Rows:    32 to 512 threads for a row of C, by its length; several short rows in a block (rmsnorm.cuh).
// Fused:   a row is read once and waits in shared memory for its own rstd. Backward makes dx and dweight in one pass: at most
//          BLOCKS blocks walk over all rows, each adds up dweight for itself, and a small second kernel adds those sums in a
//          fixed order: no atomics, the same bits each time.
// Floor:   forward reads x and writes out: 2 N C elements. Backward reads dout and x, writes dx: 3 N C elements.
#include "rmsnorm.cuh"

extern "C" __global__ void __launch_bounds__(512) rmsnorm_forward(
    Element* __restrict__ out, Real* __restrict__ rstd, const Element* __restrict__ x, const Real* __restrict__ weight,
    int N, int C, Real eps) {
  forward_rows<false>(nullptr, out, rstd, x, nullptr, weight, N, C, eps);
}

extern "C" __global__ void __launch_bounds__(512) rmsnorm_backward(
    Element* __restrict__ dx, Real* __restrict__ dweights, const Element* __restrict__ dout, const Element* __restrict__ x,
    const Real* __restrict__ weight, const Real* __restrict__ rstd, int N, int C) {
  backward_rows<false>(dx, dweights, dout, nullptr, x, weight, rstd, N, C);
}

extern "C" __global__ void __launch_bounds__(256) rmsnorm_dweight(
    Real* __restrict__ dweight, const Real* __restrict__ dweights, int rows, int C) {
  sum_rows(dweight, dweights, rows, C);
}
