// RoPE: each pair of components rotates by its position's angle                             numllama/ops/rope.py
//     out1 = x1 * cos - x2 * sin * sign        out2 = x2 * cos + x1 * sin * sign        sign: 1 forward, -1 backward
//
// Rows:    a block takes all heads of one token (b, t), so that its row of cos and sin is read from memory once. A thread rotates
//          WIDTH pairs in the layout `half`, or WIDTH/2 (at least one) in `interleaved`.
// Fused:   x and out have strides, so heads may be in any layout, such as a projection's (B, T, H, D), and no
//          permutation needs a pass of its own. out may be x: a thread writes only elements that it has read itself.
// Floor:   reads x, writes out: 2 B T H D elements; the table is small.

#if INTERLEAVED
#define PAIRS (WIDTH > 1 ? WIDTH / 2 : 1)
#else
#define PAIRS WIDTH
#endif

extern "C" __global__ void __launch_bounds__(256) rope(
    Element* out, const Element* x, const Real* __restrict__ cos, const Real* __restrict__ sin,
    Index x_batch, Index x_head, Index x_time, Index out_batch, Index out_head, Index out_time, Index table_stride,
    int H, int T, int D, Real sign) {
  const int b = blockIdx.x / T, t = blockIdx.x % T, half_D = D / 2, pieces = half_D / PAIRS;
  x += b * x_batch + t * x_time;
  out += b * out_batch + t * out_time;
  cos += b * table_stride + Index(t) * half_D;
  sin += b * table_stride + Index(t) * half_D;
  for (int piece = threadIdx.x; piece < H * pieces; piece += blockDim.x) {
    const int h = piece / pieces, j = piece % pieces * PAIRS;  // the pairs j .. j + PAIRS - 1 of head h
    const Vector<Real, PAIRS> c = load<PAIRS>(cos + j), s = load<PAIRS>(sin + j);
    const Element* const from = x + h * x_head;
    Element* const to = out + h * out_head;
#if INTERLEAVED
    const Vector<Element, 2 * PAIRS> v = load<2 * PAIRS>(from + 2 * j);
    Vector<Element, 2 * PAIRS> turned;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const Real x1 = real(v.at[2 * i]), x2 = real(v.at[2 * i + 1]), si = s.at[i] * sign;
      turned.at[2 * i] = element(x1 * c.at[i] - x2 * si);
      turned.at[2 * i + 1] = element(x2 * c.at[i] + x1 * si);
    }
    store(to + 2 * j, turned);
#else
    const Vector<Element, PAIRS> v1 = load<PAIRS>(from + j), v2 = load<PAIRS>(from + half_D + j);
    Vector<Element, PAIRS> turned1, turned2;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const Real x1 = real(v1.at[i]), x2 = real(v2.at[i]), si = s.at[i] * sign;
      turned1.at[i] = element(x1 * c.at[i] - x2 * si);
      turned2.at[i] = element(x2 * c.at[i] + x1 * si);
    }
    store(to + j, turned1);
    store(to + half_D + j, turned2);
#endif
  }
}
