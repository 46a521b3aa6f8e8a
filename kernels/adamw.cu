// AdamW over a flat buffer                                                                  numllama/optim/adamw.py
//     m += (g - m) (1 - beta1)        v += (g^2 - v) (1 - beta2)        w = w (1 - lr decay) - rate m / (sqrt(v) unbias + eps)
// keep = 1 - lr decay differs between the first `matrices` parameters and the rest; only the former have a `copy`.
// Values that change from step to step may be in memory: `numbers` (unbias, rate, keep, keep of the rest), and the `factor` that
// clips the gradients; 0 means that they are not finite, and the step is skipped.
//
// Rows:    none: a thread takes any WIDTH adjacent elements.
// Fused:   clipping, moments, bias correction, decay, step, and a copy of the weights in the compute dtype.
// Floor:   reads w, g, m, v, writes w, m, v: 7 n floats, and n elements of `copy` if there is one.

typedef COPY Copy;

// Rounded before additions, as if stored (no FMA): clipping beforehand or here gives the same result.
__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }

extern "C" __global__ void __launch_bounds__(256, 1) adamw(
    Real* __restrict__ w, const Real* __restrict__ g, Real* __restrict__ m, Real* __restrict__ v, Copy* __restrict__ copy,
    Index n, Index matrices, Real gain1, Real gain2, Real eps, Real unbias, Real rate, Real keep, const Real* numbers,
    const double* factor) {
  const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH, left = n - at;
  if (left <= 0) return;
  const Real clip = factor ? Real(factor[0]) : Real(1);
  if (clip == 0) return;
  Real keep_rest = keep;
  if (numbers) unbias = numbers[0], rate = numbers[1], keep = numbers[2], keep_rest = numbers[3];
  const Vector<Real, WIDTH> gs = load<WIDTH>(g + at, 0, left, Real(0));
  Vector<Real, WIDTH> ws = load<WIDTH>(w + at, 0, left, Real(0)), ms = load<WIDTH>(m + at, 0, left, Real(0));
  Vector<Real, WIDTH> vs = load<WIDTH>(v + at, 0, left, Real(0));
#pragma unroll
  for (int i = 0; i < WIDTH; i++) {
    const Real grad = product(gs.at[i], clip);
    ms.at[i] += (grad - ms.at[i]) * gain1;
    vs.at[i] += (grad * grad - vs.at[i]) * gain2;
    ws.at[i] = ws.at[i] * (at + i < matrices ? keep : keep_rest) - ms.at[i] / (sqrt(vs.at[i]) * unbias + eps) * rate;
  }
  store(w + at, ws, 0, left);
  store(m + at, ms, 0, left);
  store(v + at, vs, 0, left);
  if (copy && at < matrices) {
    Vector<Copy, WIDTH> c;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) c.at[i] = Convert<Copy>::from(ws.at[i]);
    store(copy + at, c, 0, matrices - at);
  }
}
