// LayerNorm:  out = (x - mean) * rstd * weight + bias                                       numllama/ops/layernorm.py
//
// Rows:    32 to 512 threads per row of C, by its length; several short rows per block (as rmsnorm.cuh).
// Fused:   a row is read once and stays in shared memory until its mean and rstd are known. Backward makes dx, dweight and dbias
//          in one pass: at most BLOCKS blocks loop over all rows, each sums its own dweight and dbias, and the last to finish adds
//          those sums in a fixed order (last_block.cuh). It reads a row twice, the second time from cache.
// Floor:   forward reads x and writes out: 2 N C elements. Backward reads dout and x, writes dx: 3 N C elements.
#include "last_block.cuh"

extern "C" __global__ void __launch_bounds__(512) layernorm_forward(
    Element* __restrict__ out, Real* __restrict__ means, Real* __restrict__ rstds, const Element* __restrict__ x,
    const Real* __restrict__ weight, const Real* __restrict__ bias, int N, int C, Real eps) {
  SHARED_MEMORY(Real, staged);
  __shared__ Real partial[32];
  const int row = blockIdx.x * blockDim.y + threadIdx.y, step = blockDim.x * WIDTH;
  const Index start = Index(row) * C;
  const bool is_there = row < N;  // all threads take part in the sums of a row
  Real* const kept = staged + threadIdx.y * C;
  Real sum = 0, squares = 0;
  for (int c = threadIdx.x * WIDTH; is_there && c < C; c += step) {
    const Vector<Element, WIDTH> v = load<WIDTH>(x + start + c);
    Vector<Real, WIDTH> r;
    for (int i = 0; i < WIDTH; i++) sum += r.at[i] = real(v.at[i]);
    store(kept + c, r);
  }
  const Real mean = row_sum(sum, partial) / Real(C);
  for (int c = threadIdx.x * WIDTH; is_there && c < C; c += step) {
    const Vector<Real, WIDTH> r = load<WIDTH>(kept + c);
    for (int i = 0; i < WIDTH; i++) squares += (r.at[i] - mean) * (r.at[i] - mean);
  }
  const Real rstd = Real(1) / sqrt(row_sum(squares, partial) / Real(C) + eps);
  if (!is_there) return;
  if (threadIdx.x == 0) means[row] = mean, rstds[row] = rstd;
  for (int c = threadIdx.x * WIDTH; c < C; c += step) {
    const Vector<Real, WIDTH> r = load<WIDTH>(kept + c), w = load<WIDTH>(weight + c), b = load<WIDTH>(bias + c);
    Vector<Element, WIDTH> v;
    for (int i = 0; i < WIDTH; i++) v.at[i] = element((r.at[i] - mean) * rstd * w.at[i] + b.at[i]);
    store(out + start + c, v);
  }
}

// `sums` has a row per block: dweight, then dbias, C each; `both` is the sum over all blocks.
extern "C" __global__ void __launch_bounds__(512, 2) layernorm_backward(
    Element* __restrict__ dx, Real* both, Real* sums, unsigned* arrived, const Element* __restrict__ dout, const Element* __restrict__ x,
    const Real* __restrict__ weight, const Real* __restrict__ means, const Real* __restrict__ rstds, int N, int C) {
  SHARED_MEMORY(Real, shared);
  __shared__ Real partial[32];
  const int step = blockDim.x * WIDTH;
  Real *const dw = shared + threadIdx.y * 2 * C, *const db = dw + C;
  for (int c = threadIdx.x * WIDTH; c < C; c += step)
    for (int i = 0; i < WIDTH; i++) dw[c + i] = db[c + i] = 0;

  for (Index first = Index(blockIdx.x) * blockDim.y; first < N; first += Index(gridDim.x) * blockDim.y) {
    const Index row = first + threadIdx.y, start = row * C;
    const bool is_there = row < N;
    const Real mean = is_there ? means[row] : Real(0), rstd = is_there ? rstds[row] : Real(0);
    Real sum = 0, dot = 0;                                             // of dn, and of dn * n
    for (int c = threadIdx.x * WIDTH; is_there && c < C; c += step) {
      const Vector<Element, WIDTH> vx = load<WIDTH>(x + start + c), vd = load<WIDTH>(dout + start + c);
      const Vector<Real, WIDTH> w = load<WIDTH>(weight + c);
      for (int i = 0; i < WIDTH; i++) {
        const Real n = (real(vx.at[i]) - mean) * rstd, d = real(vd.at[i]);
        sum += d * w.at[i];
        dot += d * w.at[i] * n;
        dw[c + i] += d * n;
        db[c + i] += d;
      }
    }
    sum = row_sum(sum, partial) / Real(C);
    dot = row_sum(dot, partial) / Real(C);
    for (int c = threadIdx.x * WIDTH; is_there && c < C; c += step) {
      const Vector<Element, WIDTH> vx = load<WIDTH>(x + start + c), vd = load<WIDTH>(dout + start + c);
      const Vector<Real, WIDTH> w = load<WIDTH>(weight + c);
      Vector<Element, WIDTH> v;
      for (int i = 0; i < WIDTH; i++) {
        const Real n = (real(vx.at[i]) - mean) * rstd;
        v.at[i] = element(rstd * (real(vd.at[i]) * w.at[i] - sum - n * dot));
      }
      store(dx + start + c, v);
    }
  }
  __syncthreads();
  for (int c = threadIdx.y * blockDim.x + threadIdx.x; c < 2 * C; c += blockDim.x * blockDim.y) {
    Real total = 0;
    for (int y = 0; y < blockDim.y; y++) total += shared[y * 2 * C + c];
    sums[Index(blockIdx.x) * 2 * C + c] = total;
  }
  sum_over_blocks(sums, arrived, 2 * C, [=](int c, Real sum) { both[c] = sum; });
}
