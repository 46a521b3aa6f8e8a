// GELU, tanh form:  out = x (1 + tanh u) / 2,   u = SLOPE (x + CUBIC x^3)                   numllama/ops/gelu.py
//
// Rows:    none: a thread takes any WIDTH adjacent elements.
// Fused:   the whole formula, forward and backward; only the input is kept.
// Floor:   forward reads x, writes out: 2 n elements. Backward reads dout and x, writes dx: 3 n elements.
#define SLOPE Real(0.79788456080286535588)
#define CUBIC Real(0.044715)

extern "C" __global__ void __launch_bounds__(256) gelu_forward(Element* __restrict__ out, const Element* __restrict__ x, Index n) {
  const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH, left = n - at;
  if (left <= 0) return;
  Vector<Element, WIDTH> v = load<WIDTH>(x + at, 0, left, Element());
#pragma unroll
  for (int i = 0; i < WIDTH; i++) {
    const Real xi = real(v.at[i]);
    v.at[i] = element(Real(0.5) * xi * (Real(1) + tanh(SLOPE * (xi + CUBIC * xi * xi * xi))));
  }
  store(out + at, v, 0, left);
}

extern "C" __global__ void __launch_bounds__(256) gelu_backward(
    Element* __restrict__ dx, const Element* __restrict__ dout, const Element* __restrict__ x, Index n) {
  const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH, left = n - at;
  if (left <= 0) return;
  const Vector<Element, WIDTH> d = load<WIDTH>(dout + at, 0, left, Element());
  Vector<Element, WIDTH> v = load<WIDTH>(x + at, 0, left, Element());
#pragma unroll
  for (int i = 0; i < WIDTH; i++) {
    const Real xi = real(v.at[i]), t = tanh(SLOPE * (xi + CUBIC * xi * xi * xi));
    const Real du = SLOPE * (Real(1) + Real(3) * CUBIC * xi * xi);
    v.at[i] = element(real(d.at[i]) * (Real(0.5) * (Real(1) + t) + Real(0.5) * xi * (Real(1) - t * t) * du));
  }
  store(dx + at, v, 0, left);
}
