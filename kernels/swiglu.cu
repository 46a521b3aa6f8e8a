// SwiGLU:  out = silu(gate) * up                                                            numllama/ops/swiglu.py
//
// Rows:    none: a thread takes WIDTH elements anywhere.
// Fused:   the whole formula, forward and backward; nothing but the inputs is kept.
// Floor:   forward reads gate and up, writes out: 3 n elements. Backward reads dout, gate, up, writes dgate, dup: 5 n elements.

// exp may overflow to infinity, and the result is then 0, as it should be. In double, where speed is no matter, the op's own form.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
__device__ __forceinline__ double sigmoid(double x) { return 0.5 * tanh(0.5 * x) + 0.5; }

extern "C" __global__ void __launch_bounds__(256) swiglu_forward(
    Element* __restrict__ out, const Element* __restrict__ gate, const Element* __restrict__ up, Index n) {
  const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH, left = n - at;
  if (left <= 0) return;
  const Vector<Element, WIDTH> g = load<WIDTH>(gate + at, 0, left, Element()), u = load<WIDTH>(up + at, 0, left, Element());
  Vector<Element, WIDTH> o;
#pragma unroll
  for (int i = 0; i < WIDTH; i++) o.at[i] = element(sigmoid(real(g.at[i])) * real(g.at[i]) * real(u.at[i]));
  store(out + at, o, 0, left);
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward(
    Element* __restrict__ dgate, Element* __restrict__ dup, const Element* __restrict__ dout, const Element* __restrict__ gate,
    const Element* __restrict__ up, Index n) {
  const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH, left = n - at;
  if (left <= 0) return;
  const Vector<Element, WIDTH> g = load<WIDTH>(gate + at, 0, left, Element()), u = load<WIDTH>(up + at, 0, left, Element());
  const Vector<Element, WIDTH> d = load<WIDTH>(dout + at, 0, left, Element());
  Vector<Element, WIDTH> dg, du;
#pragma unroll
  for (int i = 0; i < WIDTH; i++) {
    const Real gi = real(g.at[i]), di = real(d.at[i]), sigma = sigmoid(gi), silu = gi * sigma;
    dg.at[i] = element((sigma + silu * (Real(1) - sigma)) * real(u.at[i]) * di);
    du.at[i] = element(di * silu);
  }
  store(dgate + at, dg, 0, left);
  store(dup + at, du, 0, left);
}
