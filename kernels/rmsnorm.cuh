// The rows of RMSNorm, forward and backward, for rmsnorm.cu and add_rmsnorm.cu.
//
// A block has blockDim.y rows of blockDim.x threads each, a multiple of 32. A thread owns the same columns all along: WIDTH
// neighbours, then those blockDim.x * WIDTH further on. So what it stages in shared memory it alone reads, without a barrier.
#pragma once

// If ADD, x + branch is written to `total`, rounded, and what is normalised is that sum before it was rounded.
template <bool ADD> __device__ __forceinline__ void forward_rows(
    Element* total, Element* out, Real* rstd, const Element* x, const Element* branch, const Real* weight, int N, int C, Real eps) {
  SHARED_MEMORY(Real, staged);
  __shared__ Real partial[32];
  const int row = blockIdx.x * blockDim.y + threadIdx.y, step = blockDim.x * WIDTH;
  const Index start = Index(row) * C;
  Real* const kept = staged + threadIdx.y * C;
  Real squares = 0;
  if (row < N) {
    for (int c = threadIdx.x * WIDTH; c < C; c += step) {
      Vector<Element, WIDTH> v = load<WIDTH>(x + start + c);
      Vector<Real, WIDTH> sum;
      for (int i = 0; i < WIDTH; i++) sum.at[i] = real(v.at[i]);
      if (ADD) {
        const Vector<Element, WIDTH> b = load<WIDTH>(branch + start + c);
        for (int i = 0; i < WIDTH; i++) {
          sum.at[i] += real(b.at[i]);
          v.at[i] = element(sum.at[i]);
        }
        store(total + start + c, v);
      }
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

// A block goes through its rows; each row of threads adds up dweight in shared memory, and the block leaves their sum in `dweights`.
// If ADD, the gradient that reached the sum from elsewhere, `dtotal`, is added to dx.
template <bool ADD> __device__ __forceinline__ void backward_rows(
    Element* dx, Real* dweights, const Element* dout, const Element* dtotal, const Element* x, const Real* weight,
    const Real* rstd, int N, int C) {
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
    const bool is_there = row < N;  // all threads take part in the sum of a row
    const Real r = is_there ? rstd[row] : Real(0);
    Real dot = 0;                                                      // of dn and x
    for (int c = threadIdx.x * WIDTH; is_there && c < C; c += step) {
      const Vector<Element, WIDTH> vx = load<WIDTH>(x + start + c), vd = load<WIDTH>(dout + start + c);
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
      Vector<Element, WIDTH> v, before;
      if (ADD) before = load<WIDTH>(dtotal + start + c);
      for (int i = 0; i < WIDTH; i++) {
        Real d = r * (real(vd.at[i]) * w.at[i]) - real(vx.at[i]) * dot;
        if (ADD) d += real(before.at[i]);
        v.at[i] = element(d);
      }
      store(dx + start + c, v);
    }
  }
  __syncthreads();
  for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < C; c += blockDim.x * blockDim.y) {
    Real sum = 0;
    for (int y = 0; y < blockDim.y; y++) sum += sums[y * C + c];
    dweights[Index(blockIdx.x) * C + c] = sum;
  }
}

// dweight[c] = sum over rows of dweights[row, c], always in the same order. Blocks of 32 columns; threads (32, 8).
__device__ __forceinline__ void sum_rows(Real* dweight, const Real* dweights, int rows, int C) {
  __shared__ Real tile[8][33];
  const int c = blockIdx.x * 32 + threadIdx.x;
  Real sum = 0;
  if (c < C)
    for (int row = threadIdx.y; row < rows; row += 8) sum += dweights[Index(row) * C + c];
  tile[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= C) return;
  for (int i = 1; i < 8; i++) sum += tile[i][threadIdx.x];
  dweight[c] = sum;
}
