// The softmax between attention's matrix products                                  numllama/cuda/attention_products.py
//     forward     p = softmax(scale scores),  lse = log sum exp                       scores (B, H, n, S) in Real, p in DTYPE
//     backward    p again,  ds = scale p (dp - sum of p dp)                           dp like scores, ds like p
// for n of T queries, from t0 on, each over its interval of keys. Other keys get p = ds = 0, even if their scores are NaN.
//
// Rows:    32 to 512 threads per row, by its length; several short rows per block. Any length and start: see softmax.cuh.
// Fused:   scaling, masking, maximum and sum in one pass; the second pass reads its row from cache. Backward likewise: both sums,
//          then p and ds.
// Floor:   forward reads the visible scores and writes p; backward reads these entries of two arrays and writes two.
#include "softmax.cuh"

struct Keys { int first, last; };  // empty unless first < last

// Row r: its query's keys, and the offset of its statistics in (B, H, T).
struct QueryRow {
  Row row;
  Keys keys;
  Index statistics;
  __device__ __forceinline__ bool sees(int j) const { return j >= row.skew + keys.first && j < row.skew + keys.last; }
};
__device__ __forceinline__ QueryRow query_row(
    int r, const INTERVAL* first, const INTERVAL* last, int H, int T, int S, int t0, int n, int interval_batch) {
  const int t = t0 + r % n, bh = r / n;
  const Index at = Index(bh / H) * interval_batch + t;
  const INTERVAL begin = first[at] > 0 ? first[at] : 0, end = last[at] < S ? last[at] : S;
  const Keys keys = {begin < end ? int(begin) : 0, begin < end ? int(end) : 0};
  return {row_of(r, S), keys, Index(bh) * T + t};
}
// A thread's first vector with a visible key, as an offset from the row's first vector, as j everywhere.
__device__ __forceinline__ int first_piece(const QueryRow& q) {
  return (q.row.skew + q.keys.first) / (blockDim.x * WIDTH) * (blockDim.x * WIDTH) + threadIdx.x * WIDTH;
}
template <class T> __device__ __forceinline__ Vector<T, WIDTH> load_seen(const T* from, const QueryRow& q, int j, T fill) {
  return load<WIDTH>(from + q.row.base + j, q.row.skew + q.keys.first - j, q.row.skew + q.keys.last - j, fill);
}

extern "C" __global__ void __launch_bounds__(512, 1) attention_softmax_forward(
    Element* p, Real* lse, const Real* scores, const INTERVAL* first, const INTERVAL* last,
    int rows, int H, int T, int S, int t0, int n, int interval_batch, Real scale) {
  __shared__ Real partial[32];
  const int r = blockIdx.x * blockDim.y + threadIdx.y, stride = blockDim.x * WIDTH;
  const QueryRow q = query_row(min(r, rows - 1), first, last, H, T, S, t0, n, interval_batch);
  Real m = minus_infinity(), z = 0;
  for (int j = first_piece(q); j < q.row.skew + q.keys.last; j += stride) {
    const Vector<Real, WIDTH> s = load_seen(scores, q, j, Real(0));
    Real m_new = m;
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
      if (q.sees(j + i)) m_new = max(m_new, scale * s.at[i]);
    if (m_new == minus_infinity()) continue;
    z *= exp(m - m_new);
    m = m_new;
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
      if (q.sees(j + i)) z += exp(scale * s.at[i] - m);
  }
  const Real top = row_max(m, partial);
  const Real sum = row_sum(m == minus_infinity() ? Real(0) : z * exp(m - top), partial);
  if (r >= rows) return;
  const Real inverse = sum == 0 ? Real(0) : Real(1) / sum;
  if (threadIdx.x == 0) lse[q.statistics] = sum == 0 ? Real(0) : top + log(sum);
  for (int j = threadIdx.x * WIDTH; j < q.row.skew + S; j += stride) {
    const Vector<Real, WIDTH> s = load_seen(scores, q, j, Real(0));
    Vector<Element, WIDTH> out;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) out.at[i] = element(q.sees(j + i) ? exp(scale * s.at[i] - top) * inverse : Real(0));
    store_piece(p, out, q.row, j);
  }
}

extern "C" __global__ void __launch_bounds__(512, 1) attention_softmax_backward(
    Element* p, Element* ds, const Real* scores, const Real* dp, const Real* lse, const INTERVAL* first, const INTERVAL* last,
    int rows, int H, int T, int S, int t0, int n, int interval_batch, Real scale) {
  __shared__ Real partial[32];
  const int r = blockIdx.x * blockDim.y + threadIdx.y, stride = blockDim.x * WIDTH;
  const QueryRow q = query_row(min(r, rows - 1), first, last, H, T, S, t0, n, interval_batch);
  const Real of_row = lse[q.statistics];
  Real dot = 0, sum = 0;
  for (int j = first_piece(q); j < q.row.skew + q.keys.last; j += stride) {
    const Vector<Real, WIDTH> s = load_seen(scores, q, j, minus_infinity()), d = load_seen(dp, q, j, Real(0));
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      const Real value = q.sees(j + i) ? exp(scale * s.at[i] - of_row) : Real(0);
      sum += value;
      dot += value * d.at[i];
    }
  }
  sum = row_sum(sum, partial);  // 1 up to rounding errors, which are large if scores are
  dot = row_sum(dot, partial);
  if (r >= rows) return;
  const Real inverse = sum == 0 ? Real(0) : Real(1) / sum;
  dot *= inverse;
  for (int j = threadIdx.x * WIDTH; j < q.row.skew + S; j += stride) {
    const Vector<Real, WIDTH> s = load_seen(scores, q, j, Real(0)), d = load_seen(dp, q, j, Real(0));
    Vector<Element, WIDTH> of_p, of_s;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      const bool seen = q.sees(j + i);
      const Real value = seen ? exp(scale * s.at[i] - of_row) * inverse : Real(0);
      of_p.at[i] = element(value);
      of_s.at[i] = element(seen ? scale * value * (d.at[i] - dot) : Real(0));
    }
    store_piece(p, of_p, q.row, j);
    store_piece(ds, of_s, q.row, j);
  }
}
