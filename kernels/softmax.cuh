// A row's largest element and sum of exponentials in one pass, for softmax.cu and cross_entropy.cu.
//
// A row of n elements may begin anywhere, not only at a multiple of 16 bytes (as with a vocabulary of 50257). It is read in
// aligned vectors, and the first and the last may lie partly outside the row: `skew` elements of the first do.
//
// The 1 in __launch_bounds__(512, 1): requiring only one block at a time keeps ptxas from saving registers until it spills.
#pragma once

struct Row {
  Index base;  // offset of the first vector
  int skew, n;
};
__device__ __forceinline__ Row row_of(Index row, int n, Index stride) {
  const Index start = row * stride;
  const int skew = int(start % WIDTH);
  return {start - skew, skew, n};
}
__device__ __forceinline__ Row row_of(Index row, int n) { return row_of(row, n, n); }
__device__ __forceinline__ Vector<Element, WIDTH> load_piece(const Element* from, const Row& row, int j) {
  return load<WIDTH>(from + row.base + j, row.skew - j, row.skew + row.n - j, element(minus_infinity()));
}
__device__ __forceinline__ void store_piece(Element* to, const Vector<Element, WIDTH>& v, const Row& row, int j) {
  store(to + row.base + j, v, row.skew - j, row.skew + row.n - j);
}

// Milakov & Gimelshein 2018: the running sum is rescaled whenever a larger element appears. Every thread of the row
// gets both results. If all elements are minus infinity, so is top, and the sum is 0.
__device__ __forceinline__ void top_and_sum(const Element* x, const Row& row, Real* partial, Real& top, Real& sum) {
  Real m = minus_infinity(), z = 0;
  for (int j = threadIdx.x * WIDTH; j < row.skew + row.n; j += blockDim.x * WIDTH) {
    const Vector<Element, WIDTH> v = load_piece(x, row, j);
    Real m_new = m;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) m_new = max(m_new, real(v.at[i]));
    if (m_new == minus_infinity()) continue;
    z *= exp(m - m_new);
    m = m_new;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) z += exp(real(v.at[i]) - m);
  }
  top = row_max(m, partial);
  sum = row_sum(m == minus_infinity() ? Real(0) : z * exp(m - top), partial);
}
