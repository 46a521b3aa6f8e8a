// AdamW over a flat buffer                                                                  numllama/optim/adamw.py
//     m += (g - m) (1 - beta1)        v += (g^2 - v) (1 - beta2)        w = w (1 - lr decay) - rate m / (sqrt(v) / root + eps)
//
// Rows:    none: a thread takes WIDTH elements anywhere.
// Fused:   moments, bias correction, decay, step, and the weights once more in the type that the model computes with.
// Floor:   reads w, g, m, v, writes w, m, v: 7 n floats, and n elements of `copy` if there is one.

typedef COPY Copy;

extern "C" __global__ void __launch_bounds__(256) adamw(
    Real* __restrict__ w, const Real* __restrict__ g, Real* __restrict__ m, Real* __restrict__ v, Copy* __restrict__ copy,
    Index n, Real gain1, Real gain2, Real root, Real eps, Real rate, Real keep) {
  const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH, left = n - at;
  if (left <= 0) return;
  const Vector<Real, WIDTH> gs = load<WIDTH>(g + at, 0, left, Real(0));
  Vector<Real, WIDTH> ws = load<WIDTH>(w + at, 0, left, Real(0)), ms = load<WIDTH>(m + at, 0, left, Real(0));
  Vector<Real, WIDTH> vs = load<WIDTH>(v + at, 0, left, Real(0));
#pragma unroll
  for (int i = 0; i < WIDTH; i++) {
    ms.at[i] += (gs.at[i] - ms.at[i]) * gain1;
    vs.at[i] += (gs.at[i] * gs.at[i] - vs.at[i]) * gain2;
    ws.at[i] = ws.at[i] * keep - ms.at[i] / (sqrt(vs.at[i]) / root + eps) * rate;
  }
  store(w + at, ws, 0, left);
  store(m + at, ms, 0, left);
  store(v + at, vs, 0, left);
  if (copy) {
    Vector<Copy, WIDTH> c;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) c.at[i] = Convert<Copy>::from(ws.at[i]);
    store(copy + at, c, 0, left);
  }
}
