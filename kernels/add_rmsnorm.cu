// A residual sum and its norm:                                                             numllama/ops/add_rmsnorm.py
//     total = x + dropout(branch),   out = total * rstd * weight
//
// Rows:    as in rmsnorm.cu.
// Fused:   the branch is masked and the sum normalised in one pass, where three kernels would write and read them again;
//          backward adds total's other gradient to the one through the norm, and masks the sum for the branch.
//          Without x the stream begins with the branch; without dtotal it ends with the norm.
// Floor:   forward reads x and branch, writes total and out: 4 N C elements (separately: 7). Backward reads dtotal, dout and total,
//          writes dx, and dbranch if dropout applies: 4 or 5 N C elements (separately: 6 or 8).
#include "rmsnorm.cuh"

extern "C" __global__ void __launch_bounds__(512) add_rmsnorm_forward(
    Element* __restrict__ total, Element* __restrict__ out, Real* __restrict__ rstd, const Element* __restrict__ x,
    const Element* __restrict__ branch, const Real* __restrict__ weight, int N, int C, Real eps, int drops, const unsigned* key,
    unsigned low, unsigned high, unsigned threshold, Real scale) {
  const Mask mask(key, low, high, threshold, scale);
  forward_rows<true>(total, out, rstd, x, branch, weight, N, C, eps, Rows{}, drops, mask);
}

extern "C" __global__ void __launch_bounds__(512, 2) add_rmsnorm_backward(
    Element* __restrict__ dx, Element* __restrict__ dbranch, Real* dweight, Real* dweights, unsigned* arrived,
    const Element* __restrict__ dout, const Element* __restrict__ dtotal, const Element* __restrict__ total,
    const Real* __restrict__ weight, const Real* __restrict__ rstd, int N, int C, int adds, int drops, const unsigned* key,
    unsigned low, unsigned high, unsigned threshold, Real scale) {
  const Mask mask(key, low, high, threshold, scale);
  backward_rows<true>(
      dx, dbranch, dweight, dweights, arrived, dout, dtotal, total, weight, rstd, N, C, adds, Rows{}, Rows{},
      drops, mask);
}
