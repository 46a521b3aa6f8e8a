// The rows of RMSNorm, forward and backward, for rmsnorm.cu and add_rmsnorm.cu.
//
// A block has blockDim.y rows of blockDim.x threads each, a multiple of 32. A thread always owns the same columns: WIDTH
// adjacent ones, then those blockDim.x * WIDTH further on. So only it reads what it stages in shared memory: no barrier.
#pragma once
#include "dropout.cuh"
#include "last_block.cuh"

// Contiguous rows of x, or heads in a projection's layout: `heads` adjacent rows, with the next ones `stride` elements further on.
struct Rows {
  int heads;
  Index stride;
  __device__ __forceinline__ Index start(Index row, int C) const {
    return heads == 1 ? row * stride : row / heads * stride + row % heads * C;
  }
};

// If ADD, x (if given) + branch * mask is written to `total`, and the rounded sum is normalised, so that a layer
// recomputed from `total` gives the same bits. The mask is used only if `drops`.
template <bool ADD> __device__ __forceinline__ void forward_rows(
    Element* total, Element* out, Real* rstd, const Element* x, const Element* branch, const Real* weight, int N, int C, Real eps,
    const Rows& rows_of_x, bool drops, const Mask& mask) {
  SHARED_MEMORY(Real, staged);
  __shared__ Real partial[32];
  const int row = blockIdx.x * blockDim.y + threadIdx.y, step = blockDim.x * WIDTH;
  const Index start = Index(row) * C, x_start = ADD ? start : rows_of_x.start(row, C);
  Real* const kept = staged + threadIdx.y * C;
  Real squares = 0;
  if (row < N) {
    for (int c = threadIdx.x * WIDTH; c < C; c += step) {
      Vector<Element, WIDTH> v;
      Vector<Real, WIDTH> sum;
      if (!ADD || x) v = load<WIDTH>(x + x_start + c);
      if (ADD) {
        const Vector<Element, WIDTH> b = load<WIDTH>(branch + start + c);
        for (int i = 0; i < WIDTH; i++) {
          const Real kept = drops ? real(b.at[i]) * mask.at(start + c + i) : real(b.at[i]);
          v.at[i] = element(x ? real(v.at[i]) + kept : kept);
        }
        store(total + start + c, v);
      }
      for (int i = 0; i < WIDTH; i++) sum.at[i] = real(v.at[i]);
      store(kept + c, sum);
      for (int i = 0; i < WIDTH; i++) squares += sum.at[i] * sum.at[i];
    }
  }
  const Real r = Real(1) / sqrt(row_sum(squares, partial) / Real(C) + eps);
  if (row >= N) return;
  if (threadIdx.x == 0) rstd[row] = r;
  for (int c = threadIdx.x * WIDTH; c < C; c += step) {
    const Vector<Real, WIDTH> sum = load<WIDTH>(kept + c), w = load<WIDTH>(weight + c);
    Vector<Element, WIDTH> v;
    for (int i = 0; i < WIDTH; i++) v.at[i] = element(sum.at[i] * r * w.at[i]);
    store(out + start + c, v);
  }
}

// A block loops over its rows; each row of threads sums dweight in shared memory, the block writes their total to `dweights`, and
// the last block adds these to `dweight`, or overwrites it.
// If ADD, `dtotal`, the sum's gradient from elsewhere, is added to dx; dbranch, if separate, is dx * mask.
template <bool ADD> __device__ __forceinline__ void backward_rows(
    Element* dx, Element* dbranch, Real* dweight, Real* dweights, unsigned* arrived, const Element* dout, const Element* dtotal,
    const Element* x, const Real* weight, const Real* rstd, int N, int C, int adds, const Rows& rows_of_x, const Rows& rows_of_dout,
    bool drops, const Mask& mask) {
  SHARED_MEMORY(Real, sums);
  __shared__ Real partial[32];
  const int step = blockDim.x * WIDTH;
  Real* const dw = sums + threadIdx.y * C;
  Element* const staged = (Element*)(sums + blockDim.y * C) + threadIdx.y * 2 * C;
  Element *const kept_x = staged, *const kept_dout = staged + C;
  for (int c = threadIdx.x * WIDTH; c < C; c += step)
    for (int i = 0; i < WIDTH; i++) dw[c + i] = 0;

  for (Index first = Index(blockIdx.x) * blockDim.y; first < N; first += Index(gridDim.x) * blockDim.y) {
    const Index row = first + threadIdx.y, start = row * C;
    const Index x_start = ADD ? start : rows_of_x.start(row, C), dout_start = ADD ? start : rows_of_dout.start(row, C);
    const bool is_there = row < N;  // all threads take part in the sum of a row
    const Real r = is_there ? rstd[row] : Real(0);
    Real dot = 0;                                                      // of dn and x
    for (int c = threadIdx.x * WIDTH; is_there && c < C; c += step) {
      const Vector<Element, WIDTH> vx = load<WIDTH>(x + x_start + c), vd = load<WIDTH>(dout + dout_start + c);
      const Vector<Real, WIDTH> w = load<WIDTH>(weight + c);
      Vector<Real, WIDTH> sum = load<WIDTH>(dw + c);
      for (int i = 0; i < WIDTH; i++) {
        const Real xi = real(vx.at[i]), di = real(vd.at[i]);
        dot += di * w.at[i] * xi;
        sum.at[i] += di * xi * r;
      }
      store(dw + c, sum);
      store(kept_x + c, vx);
      store(kept_dout + c, vd);
    }
    dot = row_sum(dot, partial) * (r * r * r) / Real(C);
    for (int c = threadIdx.x * WIDTH; is_there && c < C; c += step) {
      const Vector<Element, WIDTH> vx = load<WIDTH>(kept_x + c), vd = load<WIDTH>(kept_dout + c);
      const Vector<Real, WIDTH> w = load<WIDTH>(weight + c);
      Vector<Element, WIDTH> v, masked, before;
      if (ADD && dtotal) before = load<WIDTH>(dtotal + start + c);
      for (int i = 0; i < WIDTH; i++) {
        Real d = r * (real(vd.at[i]) * w.at[i]) - real(vx.at[i]) * dot;
        if (ADD && dtotal) d += real(before.at[i]);
        v.at[i] = element(d);
        if (ADD && drops) masked.at[i] = element(d * mask.at(start + c + i));
      }
      store(dx + start + c, v);
      if (ADD && drops) store(dbranch + start + c, masked);
    }
  }
  __syncthreads();
  for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < C; c += blockDim.x * blockDim.y) {
    Real sum = 0;
    for (int y = 0; y < blockDim.y; y++) sum += sums[y * C + c];
    dweights[Index(blockIdx.x) * C + c] = sum;
  }
  sum_over_blocks(dweights, arrived, C, [=](int c, Real sum) { dweight[c] = adds ? dweight[c] + sum : sum; });
}
