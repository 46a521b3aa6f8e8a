// A residual sum and the norm of it:  total = x + branch,   out = total * rstd * weight     numllama/ops/add_rmsnorm.py
//
// Rows:    as in rmsnorm.cu.
// Fused:   the sum is normalised on its way to memory, where two kernels would write it and read it again; backward adds the
//          gradient that total gets from elsewhere to the one that comes through the norm.
// Floor:   forward reads x and branch, writes total and out: 4 N C elements (apart: 5). Backward reads dtotal, dout and total,
//          writes dx, which is dbranch too: 4 N C elements (apart: 6).
#include "rmsnorm.cuh"

extern "C" __global__ void __launch_bounds__(512) add_rmsnorm_forward(
    Element* __restrict__ total, Element* __restrict__ out, Real* __restrict__ rstd, const Element* __restrict__ x,
    const Element* __restrict__ branch, const Real* __restrict__ weight, int N, int C, Real eps) {
  forward_rows<true>(total, out, rstd, x, branch, weight, N, C, eps);
}

extern "C" __global__ void __launch_bounds__(512) add_rmsnorm_backward(
    Element* __restrict__ dx, Real* __restrict__ dweights, const Element* __restrict__ dout,
    const Element* __restrict__ dtotal, const Element* __restrict__ total, const Real* __restrict__ weight,
    const Real* __restrict__ rstd, int N, int C) {
  backward_rows<true>(dx, dweights, dout, dtotal, total, weight, rstd, N, C);
}

extern "C" __global__ void __launch_bounds__(256) add_rmsnorm_dweight(
    Real* __restrict__ dweight, const Real* __restrict__ dweights, int rows, int C) {
  sum_rows(dweight, dweights, rows, C);
}
