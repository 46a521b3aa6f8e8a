// SwiGLU:  out = silu(gate) * up                                                            numllama/ops/swiglu.py
//
// Rows:    a block takes threads * WIDTH columns of a row of F, or all of them. Rows of gate and up are `stride` elements apart:
//          F, or 2 F if they are the halves of one product's rows, as dgate and dup always are.
// Fused:   the whole formula, forward and backward; only the inputs are kept.
// Floor:   forward reads gate and up, writes out: 3 n elements. Backward reads dout, gate, up, writes dgate, dup: 5 n elements.

// exp may overflow to infinity, which gives the right result, 0. double, whose speed does not matter, uses the op's form.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
__device__ __forceinline__ double sigmoid(double x) { return 0.5 * tanh(0.5 * x) + 0.5; }

// The row and first column of a thread; the column may be beyond the last.
struct Place {
  Index row;
  int column;
};
__device__ __forceinline__ Place place(int columns) {
  const unsigned row = blockIdx.x / columns;
  return {row, int((blockIdx.x - row * columns) * blockDim.x + threadIdx.x) * WIDTH};
}

extern "C" __global__ void __launch_bounds__(256) swiglu_forward(
    Element* __restrict__ out, const Element* __restrict__ gate, const Element* __restrict__ up, int F, int columns, Index stride,
    Index out_stride) {
  const Place p = place(columns);
  if (p.column >= F) return;
  const Index from = p.row * stride + p.column;
  const Vector<Element, WIDTH> g = load<WIDTH>(gate + from), u = load<WIDTH>(up + from);
  Vector<Element, WIDTH> o;
#pragma unroll
  for (int i = 0; i < WIDTH; i++) o.at[i] = element(sigmoid(real(g.at[i])) * real(g.at[i]) * real(u.at[i]));
  store(out + p.row * out_stride + p.column, o);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward(
    Element* __restrict__ dgate, Element* __restrict__ dup, const Element* __restrict__ dout, const Element* __restrict__ gate,
    const Element* __restrict__ up, int F, int columns, Index stride, Index d_stride) {
  const Place p = place(columns);
  if (p.column >= F) return;
  const Index from = p.row * stride + p.column, to = p.row * d_stride + p.column;
  const Vector<Element, WIDTH> g = load<WIDTH>(gate + from), u = load<WIDTH>(up + from);
  const Vector<Element, WIDTH> d = load<WIDTH>(dout + p.row * F + p.column);
  Vector<Element, WIDTH> dg, du;
#pragma unroll
  for (int i = 0; i < WIDTH; i++) {
    const Real gi = real(g.at[i]), di = real(d.at[i]), sigma = sigmoid(gi), silu = gi * sigma;
    dg.at[i] = element((sigma + silu * (Real(1) - sigma)) * real(u.at[i]) * di);
    du.at[i] = element(di * silu);
  }
  store(dgate + to, dg);
  store(dup + to, du);
}
