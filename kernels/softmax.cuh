// The largest element of a row and the sum of exponentials, in one pass, for softmax.cu and cross_entropy.cu.
//
// A row of n elements may begin anywhere, not only at a multiple of 16 bytes (a vocabulary of 50257, say): its vectors are
// those of memory, and the first and the last of them may lie partly outside. `skew` is how many elements of the first do.
//
// The 1 in __launch_bounds__(512, 1): one block at a time is enough to ask for, else ptxas saves registers until it spills some.
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

// Milakov & Gimelshein 2018: whenever the largest element so far rises, the sum so far is rescaled. Every thread of the row
// gets both. A row of nothing but minus infinity: top is minus infinity and the sum 0.
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
