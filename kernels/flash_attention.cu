// Flash attention: forward, dq, and dk with dv, for D = 64 and 128, grouped queries, and an interval of keys for each query.
//
// What is computed (ops/flash_attention.py derives it; query t sees the keys first[t] <= s < last[t]):
//     forward     s = scale q k^T,  lse = log sum exp s,  out = sum of exp(s - lse) v                2 products
//     dq          p = exp(s - lse),  dp = dout v^T,  ds = p (dp - delta),  dq = scale ds k           3 products
//     dk, dv      the same s, p, dp, ds again,  dv = p^T dout,  dk = scale ds^T q                    4 products
// with delta = sum over D of dout out. A product takes 2 D FLOPs for each pair of a query and a key that it sees: the floor of
// forward is 4 D FLOPs a pair, and that of backward 10 D. Backward does 14 D here, because both of its kernels make s and dp: so
// every sum has one owner that adds in one order. There are no atomics, and the same input gives the same bits.
//
// How threads map to rows. A block owns ROWS queries (of dk, dv: keys) of one head, and walks over the other side in steps; the
// next step is on its way into shared memory (cp.async, two stages) while this one is multiplied. A warp owns 16 or 32 of the
// rows for good. Its part of s, p, dp and ds never leaves its registers: the layout in which the tensor cores leave a product is
// one in which they take an operand, and a row's maximum and sum are a matter of the four lanes that hold it. For dk and dv all
// is turned around: scores are made as s^T = k q^T, rows are keys, and p^T and ds^T are the operands in registers.
//     With 32 rows to a warp, what is read of the other side serves two products. That keeps shared memory (128 bytes a clock)
// behind the tensor cores: in forward at D = 64 a step of 48 keys is 96 products, 192 clocks at sm_80's rate, and 32 reads, 128
// clocks. Up to 192 of 255 registers are sums then, and two or three blocks of four warps on a multiprocessor hide each other's
// waits. Two sums of 32 rows do not fit at D = 128: there dk and dv have 16 rows to a warp, and eight warps in a block.
//     Grouped queries cost nothing: query head h reads key head h / R, and a block of dk, dv walks over all R heads of its group.
//
// What is fused: scaling, masking, softmax and its gradient. delta is made by dq, which reads dout anyway, and handed on. Keys
// that no query of a block sees are not loaded, those that no query of a warp sees are not multiplied, and masks are looked at
// only where an interval ends inside of a step. (B, H, T, D) views of (B, T, H, D) memory are read where they lie, through their
// strides, and results are written as (B, T, H, D).
//
// DTYPE is bfloat16 or half: products on the tensor cores with sums in float32; p and ds are rounded to DTYPE where they become
// operands. Or it is float: then the same kernels do plain multiplications and additions, in the same layout.

#include "flash_attention.cuh"


// ------------------------------------------------------------------------------------------------ forward

// The four lanes that hold a row.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Hidden scores become -infinity; column 0 is key s0, and `seen` has an interval for each of the warp's rows.
template <int M, int N>
__device__ __forceinline__ void hide(float (&s)[M][N / 8][4], const Interval* seen, int s0) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      const Interval of_row = seen[16 * m + 8 * r + g];
      const int first = of_row.first - s0 - 2 * c, last = of_row.last - s0 - 2 * c;
      #pragma unroll
      for (int n = 0; n < N / 8; n++)
        #pragma unroll
        for (int j = 0; j < 2; j++)
          if (8 * n + j < first || 8 * n + j >= last) s[m][n][2 * r + j] = -INFINITE;
    }
}

// The same where rows are keys, from s0 on, and columns queries, from t0 on.
template <int M, int N>
__device__ __forceinline__ void hide_columns(
    float (&s)[M][N / 8][4], const INTERVAL* first, const INTERVAL* last, int t0, int T, int S, int s0) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  #pragma unroll
  for (int n = 0; n < N / 8; n++)
    #pragma unroll
    for (int j = 0; j < 2; j++) {
      const Interval seen = interval(first, last, t0 + 8 * n + 2 * c + j, T, S);
      const int begin = seen.first - s0 - g, end = seen.last - s0 - g;
      #pragma unroll
      for (int m = 0; m < M; m++)
        #pragma unroll
        for (int r = 0; r < 2; r++)
          if (16 * m + 8 * r < begin || 16 * m + 8 * r >= end) s[m][n][2 * r + j] = -INFINITE;
    }
}

// exp(scale (s - top)), with scale2 = scale log2 e. The second form does not lose digits where both are large.
__device__ __forceinline__ float exp_above(float s, float top, float scale2) {
  return exp2f(PAIRS ? fmaf(s, scale2, -top * scale2) : (s - top) * scale2);
}

// Scores become p = exp_above(s, top), and z and o, the sums of p and of p v so far, go over to a new top. A row's top is its
// largest score so far; but it only follows when for some row of the warp a p would be above 2^8. Below that, no harm is done, and
// most steps leave o as it is.
template <int M, int N>
__device__ __forceinline__ void online_softmax(
    float (&s)[M][N / 8][4], float (&o)[M][D / 8][4], float (&top)[M][2], float (&z)[M][2], float scale2) {
  float high[M][2], shrink[M][2];
  bool rises = false;
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      high[m][r] = top[m][r];
      #pragma unroll
      for (int n = 0; n < N / 8; n++) high[m][r] = fmaxf(high[m][r], fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
      high[m][r] = quad_max(high[m][r]);
      rises |= (high[m][r] - top[m][r]) * scale2 > 8.f;
    }
  rises = __any_sync(~0u, rises);
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      if (!rises) high[m][r] = top[m][r];
      const float base = high[m][r] == -INFINITE ? 0.f : high[m][r];       // nothing seen yet: exp(-infinity) = 0, not exp(NaN)
      shrink[m][r] = exp_above(top[m][r], base, scale2);
      top[m][r] = high[m][r];
      z[m][r] *= shrink[m][r];                                             // of this lane's columns; added up at the end
      #pragma unroll
      for (int n = 0; n < N / 8; n++)
        #pragma unroll
        for (int j = 0; j < 2; j++) z[m][r] += s[m][n][2 * r + j] = exp_above(s[m][n][2 * r + j], base, scale2);
    }
  if (!rises) return;
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int n = 0; n < D / 8; n++)
      #pragma unroll
      for (int i = 0; i < 4; i++) o[m][n][i] *= shrink[m][i / 2];
}

// grid (tiles of queries, H, B). With `causal`, first and last (T) are not read but written: 0 and S - T + t + 1.
extern "C" __global__ void __launch_bounds__(Forward::THREADS, Forward::BLOCKS) flash_attention_forward(
    Element* out, float* lse, INTERVAL* first, INTERVAL* last, const Element* q, Index q_batch, Index q_head, int q_time,
    const Element* k, const Element* v, Index kv_batch, Index kv_head, int kv_time,
    int K, int T, int S, int interval_batch, int causal, float scale, float scale2) {
  constexpr int M = Forward::M, STEP = Forward::STEP, THREADS = Forward::THREADS;
  SHARED_MEMORY(Element, q_tile);
  Element* const stages = q_tile + Forward::ROWS * D;               // keys and values, twice
  const int batch = blockIdx.z, head = blockIdx.y, H = gridDim.y, k_head = head / (H / K);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warp_row = warp * Forward::WARP_ROWS;
  const int t0 = (gridDim.x - 1 - blockIdx.x) * Forward::ROWS;      // causal: those with the most keys start first
  q += batch * q_batch + head * q_head + (Index)t0 * q_time;
  const Index v_apart = v - k;
  k += batch * kv_batch + k_head * kv_head;
  Rows(q, q_time).load<Forward::ROWS, THREADS>(q_tile, T - t0);

  const int t = t0 + warp_row + lane % Forward::WARP_ROWS;
  first += (Index)batch * interval_batch;
  last += (Index)batch * interval_batch;
  if (causal && t < T) {
    first[t] = 0;
    last[t] = S - T + t + 1;
  }
  __shared__ Interval seen[Forward::ROWS];
  __shared__ Bounds seen_by_warp[Forward::WARPS];
  seen[t - t0] = interval(first, last, t, T, S);
  seen_by_warp[warp] = warp_bounds(seen[t - t0], t < T);
  const Interval keys = block_union(seen_by_warp);
  Rows k_rows(k, kv_time);
  const auto load_step = [&](Element* stage, int s0) {
    k_rows.load<STEP, THREADS>(stage, S - s0);
    k_rows.load<STEP, THREADS>(stage + STEP * D, S - s0, v_apart);
    k_rows.skip(STEP);
  };
  if (keys.first < keys.last) {
    k_rows.skip(keys.first);
    load_step(stages, keys.first);
  }
  copy_commit();

  float o[M][D / 8][4] = {}, z[M][2] = {}, top[M][2];
  for (int m = 0; m < M; m++) top[m][0] = top[m][1] = -INFINITE;
  int now = 0;                                                      // 0 or 1: the stage that is multiplied
  for (int s0 = keys.first; s0 < keys.last; s0 += STEP, now ^= 1) {
    copy_wait<0>();
    __syncthreads();                                                // this step has arrived, and nobody needs the one before
    if (s0 + STEP < keys.last) load_step(stages + (now ^ 1) * 2 * STEP * D, s0 + STEP);
    copy_commit();
    const Bounds bounds = seen_by_warp[warp];
    if (bounds.nobody_sees(s0, s0 + STEP)) continue;
    const Element* const k_tile = stages + now * 2 * STEP * D;
    float s[M][STEP / 8][4] = {};
    Product<Element>::rows_by_rows<M, STEP>(s, q_tile + warp_row * D, k_tile);
    if (!bounds.all_see(s0, s0 + STEP)) hide<M, STEP>(s, seen + warp_row, s0);
    online_softmax<M, STEP>(s, o, top, z, scale2);
    Product<Element>::scores_by_rows<M, STEP>(o, s, k_tile + STEP * D);
  }

  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      const float sum = quad_sum(z[m][r]), inverse = sum == 0.f ? 0.f : __fdividef(1.f, sum);
      const int row = t0 + warp_row + 16 * m + 8 * r + lane / 4;
      if (lane % 4 == 0 && row < T)
        lse[((Index)batch * H + head) * T + row] = sum == 0.f ? 0.f : fmaf(top[m][r], scale, logf(sum));
      #pragma unroll
      for (int n = 0; n < D / 8; n++) {
        o[m][n][2 * r] *= inverse;
        o[m][n][2 * r + 1] *= inverse;
      }
    }
  copy_wait<0>();
  __syncthreads();                                                  // nothing is on its way into q_tile, even after no step
  out += (((Index)batch * T + t0 + warp_row) * H + head) * D;
  store_rows<M>(out, (Index)H * D, T - t0 - warp_row, o, q_tile + warp_row * D);
}


// ------------------------------------------------------------------------------------------------ backward

// grid (tiles of queries, H, B). Also makes what the other kernel needs: delta (B, H, T), and bounds of every WARP_ROWS queries.
extern "C" __global__ void __launch_bounds__(Dq::THREADS, Dq::BLOCKS) flash_attention_dq(
    Element* dq, float* delta, Bounds* bounds_of, const Element* q, Index q_batch, Index q_head, int q_time,
    const Element* k, const Element* v, Index kv_batch, Index kv_head, int kv_time,
    const Element* out, Index out_batch, Index out_head, int out_time,
    const Element* dout, Index dout_batch, Index dout_head, int dout_time,
    const float* lse, const INTERVAL* first, const INTERVAL* last, int K, int T, int S, int interval_batch, float scale) {
  constexpr int M = Dq::M, STEP = Dq::STEP, THREADS = Dq::THREADS, WARP_ROWS = Dq::WARP_ROWS;
  SHARED_MEMORY(Element, q_tile);
  Element* const dout_tile = q_tile + Dq::ROWS * D;
  Element* const stages = dout_tile + Dq::ROWS * D;                 // keys and values, twice
  const int batch = blockIdx.z, head = blockIdx.y, H = gridDim.y, k_head = head / (H / K);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warp_row = warp * WARP_ROWS;
  const int t0 = (gridDim.x - 1 - blockIdx.x) * Dq::ROWS;
  q += batch * q_batch + head * q_head + (Index)t0 * q_time;
  const Index v_apart = v - k;
  k += batch * kv_batch + k_head * kv_head;
  out += batch * out_batch + head * out_head + (Index)t0 * out_time;
  dout += batch * dout_batch + head * dout_head + (Index)t0 * dout_time;
  lse += ((Index)batch * H + head) * T + t0;
  delta += ((Index)batch * H + head) * T + t0;
  Rows(q, q_time).load<Dq::ROWS, THREADS>(q_tile, T - t0);
  Rows(dout, dout_time).load<Dq::ROWS, THREADS>(dout_tile, T - t0);

  const int t = t0 + warp_row + lane % WARP_ROWS;
  __shared__ Interval seen[Dq::ROWS];
  __shared__ Bounds seen_by_warp[Dq::WARPS];
  seen[t - t0] = interval(first + (Index)batch * interval_batch, last + (Index)batch * interval_batch, t, T, S);
  seen_by_warp[warp] = warp_bounds(seen[t - t0], t < T);
  if (head == 0 && (batch == 0 || interval_batch) && lane == 0 && t < T)
    bounds_of[(Index)(interval_batch ? batch : 0) * ((T + WARP_ROWS - 1) / WARP_ROWS) + t / WARP_ROWS] = seen_by_warp[warp];
  const Interval keys = block_union(seen_by_warp);
  Rows k_rows(k, kv_time);
  const auto load_step = [&](Element* stage, int s0) {
    k_rows.load<STEP, THREADS>(stage, S - s0);
    k_rows.load<STEP, THREADS>(stage + STEP * D, S - s0, v_apart);
    k_rows.skip(STEP);
  };
  if (keys.first < keys.last) {
    k_rows.skip(keys.first);
    load_step(stages, keys.first);
  }
  copy_commit();

  float row_delta[M][2], row_lse[M][2];                             // of the rows that this lane holds a part of
  #pragma unroll
  for (int i = 0; i < WARP_ROWS; i += 32 / CHUNKS) {                // CHUNKS lanes to a row
    const int row = i + lane / CHUNKS, column = lane % CHUNKS * PER_CHUNK;
    float sum = 0.f;
    if (t0 + warp_row + row < T) {
      const auto a = load<PER_CHUNK>(out + (Index)(warp_row + row) * out_time + column);
      const auto b = load<PER_CHUNK>(dout + (Index)(warp_row + row) * dout_time + column);
      #pragma unroll
      for (int j = 0; j < PER_CHUNK; j++) sum += real(a.at[j]) * real(b.at[j]);
    }
    #pragma unroll
    for (int j = 1; j < CHUNKS; j *= 2) sum += __shfl_xor_sync(~0u, sum, j);
    if (lane % CHUNKS == 0 && t0 + warp_row + row < T) delta[warp_row + row] = sum;
  }
  __syncwarp();
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = warp_row + 16 * m + 8 * r + lane / 4;
      row_delta[m][r] = t0 + row < T ? delta[row] : 0.f;
      row_lse[m][r] = t0 + row < T ? lse[row] : 0.f;
    }

  float acc[M][D / 8][4] = {};
  int now = 0;
  for (int s0 = keys.first; s0 < keys.last; s0 += STEP, now ^= 1) {
    copy_wait<0>();
    __syncthreads();
    if (s0 + STEP < keys.last) load_step(stages + (now ^ 1) * 2 * STEP * D, s0 + STEP);
    copy_commit();
    const Bounds bounds = seen_by_warp[warp];
    if (bounds.nobody_sees(s0, s0 + STEP)) continue;
    const Element* const k_tile = stages + now * 2 * STEP * D;
    float s[M][STEP / 8][4] = {}, dp[M][STEP / 8][4] = {};
    Product<Element>::rows_by_rows<M, STEP>(s, q_tile + warp_row * D, k_tile);
    if (!bounds.all_see(s0, s0 + STEP)) hide<M, STEP>(s, seen + warp_row, s0);
    Product<Element>::rows_by_rows<M, STEP>(dp, dout_tile + warp_row * D, k_tile + STEP * D);
    #pragma unroll
    for (int m = 0; m < M; m++)
      #pragma unroll
      for (int n = 0; n < STEP / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) {
          const float p = exp2f(fmaf(s[m][n][i], scale, -row_lse[m][i / 2]) * LOG2_E);
          s[m][n][i] = p * (dp[m][n][i] - row_delta[m][i / 2]);
        }
    Product<Element>::scores_by_rows<M, STEP>(acc, s, k_tile);
  }

  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int n = 0; n < D / 8; n++)
      #pragma unroll
      for (int i = 0; i < 4; i++) acc[m][n][i] *= scale;
  copy_wait<0>();
  __syncthreads();
  dq += (((Index)batch * T + t0 + warp_row) * H + head) * D;
  store_rows<M>(dq, (Index)H * D, T - t0 - warp_row, acc, q_tile + warp_row * D);
}

// grid (tiles of keys, K, B). Rows are keys here, and columns queries.
extern "C" __global__ void __launch_bounds__(Dkv::THREADS, Dkv::BLOCKS) flash_attention_dkv(
    Element* dk, Element* dv, const Element* q, Index q_batch, Index q_head, int q_time,
    const Element* k, const Element* v, Index kv_batch, Index kv_head, int kv_time,
    const Element* dout, Index dout_batch, Index dout_head, int dout_time, const float* lse, const float* delta,
    const Bounds* bounds_of, const INTERVAL* first, const INTERVAL* last, int H, int T, int S, int interval_batch, float scale) {
  constexpr int M = Dkv::M, STEP = Dkv::STEP, THREADS = Dkv::THREADS;
  SHARED_MEMORY(Element, k_tile);
  Element* const v_tile = k_tile + Dkv::ROWS * D;
  Element* const stages = v_tile + Dkv::ROWS * D;                   // queries and dout, twice
  float* const statistics = reinterpret_cast<float*>(stages + 2 * 2 * STEP * D);    // their lse and delta, twice
  const int batch = blockIdx.z, k_head = blockIdx.y, K = gridDim.y, R = H / K;
  const int lane = threadIdx.x % 32, c = lane % 4, warp_row = threadIdx.x / 32 * Dkv::WARP_ROWS;
  const int s0 = blockIdx.x * Dkv::ROWS, warp_s0 = s0 + warp_row, warp_s1 = warp_s0 + Dkv::WARP_ROWS;
  const Rows k_rows(k + batch * kv_batch + k_head * kv_head + (Index)s0 * kv_time, kv_time);
  k_rows.load<Dkv::ROWS, THREADS>(k_tile, S - s0);
  k_rows.load<Dkv::ROWS, THREADS>(v_tile, S - s0, v - k);
  q += batch * q_batch + k_head * R * q_head;
  dout += batch * dout_batch + k_head * R * dout_head;
  lse += ((Index)batch * H + k_head * R) * T;
  delta += ((Index)batch * H + k_head * R) * T;
  const int all_steps = (T + STEP - 1) / STEP;
  bounds_of += (Index)(interval_batch ? batch : 0) * all_steps;
  first += (Index)batch * interval_batch;
  last += (Index)batch * interval_batch;

  Interval visible = {LARGEST_INT, 0};                              // steps with queries that see one of the block's keys
  for (int i = threadIdx.x; i < all_steps; i += THREADS)
    if (!bounds_of[i].nobody_sees(s0, s0 + Dkv::ROWS)) visible = {min(visible.first, i), i + 1};
  __shared__ Bounds steps_of_warp[Dkv::WARPS];
  steps_of_warp[threadIdx.x / 32] = warp_bounds(visible, true);
  const Interval steps = block_union(steps_of_warp);
  Rows q_rows(q, q_time), dout_rows(dout, dout_time);
  const auto load_step = [&](int stage, int head, int step) {
    Element* const tile = stages + stage * 2 * STEP * D;
    q_rows.load<STEP, THREADS>(tile, T - step * STEP);
    dout_rows.load<STEP, THREADS>(tile + STEP * D, T - step * STEP);
    q_rows.skip(STEP);
    dout_rows.skip(STEP);
    const int t = step * STEP + threadIdx.x % STEP;
    if (threadIdx.x < 2 * STEP)
      copy_async_4(statistics + stage * 2 * STEP + threadIdx.x, (threadIdx.x < STEP ? lse : delta) + (Index)head * T + t, t < T);
  };
  if (steps.first < steps.last) {
    q_rows.skip(steps.first * STEP);
    dout_rows.skip(steps.first * STEP);
    load_step(0, 0, steps.first);
  }
  copy_commit();

  float dk_acc[M][D / 8][4] = {}, dv_acc[M][D / 8][4] = {};
  int now = 0, head = 0;
  for (int step = steps.first; step < steps.last; now ^= 1) {
    copy_wait<0>();
    __syncthreads();
    const int t0 = step * STEP;
    const Bounds bounds = bounds_of[step++];
    if (step == steps.last && head + 1 < R) {                       // on to the next query head
      head++;
      step = steps.first;
      q_rows.mine += q_head;
      dout_rows.mine += dout_head;
      q_rows.skip((steps.first - steps.last) * STEP);
      dout_rows.skip((steps.first - steps.last) * STEP);
    }
    if (step < steps.last) load_step(now ^ 1, head, step);
    copy_commit();
    if (bounds.nobody_sees(warp_s0, warp_s1)) continue;
    const Element* const q_tile = stages + now * 2 * STEP * D;
    const Element* const dout_tile = q_tile + STEP * D;
    const float* const step_lse = statistics + now * 2 * STEP;
    const float* const step_delta = step_lse + STEP;

    float p[M][STEP / 8][4] = {}, ds[M][STEP / 8][4] = {};
    Product<Element>::rows_by_rows<M, STEP>(p, k_tile + warp_row * D, q_tile);
    if (!bounds.all_see(warp_s0, warp_s1)) hide_columns<M, STEP>(p, first, last, t0, T, S, warp_s0);
    #pragma unroll
    for (int n = 0; n < STEP / 8; n++) {
      const float2 column_lse = *reinterpret_cast<const float2*>(step_lse + 8 * n + 2 * c);
      #pragma unroll
      for (int m = 0; m < M; m++)
        #pragma unroll
        for (int j = 0; j < 4; j++)
          p[m][n][j] = exp2f(fmaf(p[m][n][j], scale, -(j % 2 ? column_lse.y : column_lse.x)) * LOG2_E);
    }
    Product<Element>::rows_by_rows<M, STEP>(ds, v_tile + warp_row * D, dout_tile);
    #pragma unroll
    for (int n = 0; n < STEP / 8; n++) {
      const float2 column_delta = *reinterpret_cast<const float2*>(step_delta + 8 * n + 2 * c);
      #pragma unroll
      for (int m = 0; m < M; m++)
        #pragma unroll
        for (int j = 0; j < 4; j++) ds[m][n][j] = p[m][n][j] * (ds[m][n][j] - (j % 2 ? column_delta.y : column_delta.x));
    }
    Product<Element>::scores_by_rows<M, STEP>(dv_acc, p, dout_tile);
    Product<Element>::scores_by_rows<M, STEP>(dk_acc, ds, q_tile);
  }

  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int n = 0; n < D / 8; n++)
      #pragma unroll
      for (int i = 0; i < 4; i++) dk_acc[m][n][i] *= scale;
  copy_wait<0>();
  __syncthreads();
  const Index at = (((Index)batch * S + warp_s0) * K + k_head) * D;
  store_rows<M>(dk + at, (Index)K * D, S - warp_s0, dk_acc, k_tile + warp_row * D);
  store_rows<M>(dv + at, (Index)K * D, S - warp_s0, dv_acc, v_tile + warp_row * D);
}
