// RMSNorm:  out = x * rstd * weight,   rstd = 1 / sqrt(mean(x^2) + eps)                     numllama/ops/rmsnorm.py
//
// Rows:    32 to 512 threads per row of C, by its length; several short rows per block (rmsnorm.cuh). Heads are read through
//          the strides that a projection or attention gave them, and written as (B, T, H, D).
// Fused:   a row is read once and stays in shared memory until its rstd is known. Backward makes dx and dweight in one pass:
//          at most BLOCKS blocks loop over all rows, each sums its own dweight, and the last to finish adds those sums in a
//          fixed order (last_block.cuh): no float atomics, the same bits each time.
// Floor:   forward reads x and writes out: 2 N C elements. Backward reads dout and x, writes dx: 3 N C elements.
#include "rmsnorm.cuh"

extern "C" __global__ void __launch_bounds__(512) rmsnorm_forward(
    Element* __restrict__ out, Real* __restrict__ rstd, const Element* __restrict__ x, const Real* __restrict__ weight,
    int N, int C, Real eps, int heads, Index x_stride) {
  forward_rows<false>(nullptr, out, rstd, x, nullptr, weight, N, C, eps, Rows{heads, x_stride}, false,
                      Mask(nullptr, 0, 0, 0, 1));
}

extern "C" __global__ void __launch_bounds__(512) rmsnorm_backward(
    Element* __restrict__ dx, Real* dweight, Real* dweights, unsigned* arrived, const Element* __restrict__ dout,
    const Element* __restrict__ x, const Real* __restrict__ weight, const Real* __restrict__ rstd, int N, int C, int adds,
    int heads, Index dout_stride, Index x_stride) {
  backward_rows<false>(
      dx, nullptr, dweight, dweights, arrived, dout, nullptr, x, weight, rstd, N, C, adds, Rows{heads, x_stride},
      Rows{heads, dout_stride}, false, Mask(nullptr, 0, 0, 0, 1));
}
