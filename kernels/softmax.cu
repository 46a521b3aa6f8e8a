// Softmax over rows:  p = exp(x - max) / sum                                                numllama/ops/softmax.py
//
// Rows:    32 to 512 threads per row, by its length; several short rows per block. Any length and start: see softmax.cuh.
// Fused:   maximum and sum in one pass; the second pass reads its row from cache. Backward likewise: dot product, then dx.
// Floor:   forward reads x and writes p: 2 n elements. Backward reads dout and p, writes dx: 3 n elements.
#include "softmax.cuh"

extern "C" __global__ void __launch_bounds__(512, 1) softmax_forward(Element* p, const Element* x, int rows, int n) {
  __shared__ Real partial[32];
  const int r = blockIdx.x * blockDim.y + threadIdx.y;
  const Row row = row_of(min(r, rows - 1), n);  // threads beyond the last row take part, but write nothing
  Real top, sum;
  top_and_sum(x, row, partial, top, sum);
  if (r >= rows) return;
  const Real scale = sum == 0 ? Real(0) : Real(1) / sum;
  top = sum == 0 ? Real(0) : top;
  for (int j = threadIdx.x * WIDTH; j < row.skew + n; j += blockDim.x * WIDTH) {
    Vector<Element, WIDTH> v = load_piece(x, row, j);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) v.at[i] = element(exp(real(v.at[i]) - top) * scale);
    store_piece(p, v, row, j);
  }
}

extern "C" __global__ void __launch_bounds__(512, 1) softmax_backward(
    Element* dx, const Element* dout, const Element* p, int rows, int n) {
  __shared__ Real partial[32];
  const int r = blockIdx.x * blockDim.y + threadIdx.y;
  const Row row = row_of(min(r, rows - 1), n);
  Real dot = 0;
  for (int j = threadIdx.x * WIDTH; j < row.skew + n; j += blockDim.x * WIDTH) {
    const Vector<Element, WIDTH> d = load_piece(dout, row, j), v = load_piece(p, row, j);
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
      if (j + i >= row.skew && j + i < row.skew + n) dot += real(d.at[i]) * real(v.at[i]);
  }
  dot = row_sum(dot, partial);
  if (r >= rows) return;
  for (int j = threadIdx.x * WIDTH; j < row.skew + n; j += blockDim.x * WIDTH) {
    const Vector<Element, WIDTH> d = load_piece(dout, row, j);
    Vector<Element, WIDTH> v = load_piece(p, row, j);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) v.at[i] = element(real(v.at[i]) * (real(d.at[i]) - dot));
    store_piece(dx, v, row, j);
  }
}
