// Flash attention: forward and backward, for heads of up to 128, grouped queries, and an interval of keys for each query.
//
// The math (derived in ops/flash_attention.py; query t sees the keys first[t] <= s < last[t]):
//     forward     s = scale q k^T,  lse = log sum exp s,  out = sum of exp(s - lse) v                            2 products
//     backward    p = exp(s - lse),  dp = dout v^T,  ds = p (dp - delta),                                        5 products
//                 dv = p^T dout,  dk = scale ds^T q,  dq = scale ds k
// with delta = sum over D of dout out. A product takes 2 D FLOPs per pair of a query and a visible key, so the floor is 4 D FLOPs
// per pair forward and 10 D backward. There are no atomics, and the same input gives the same bits.
//
// How threads map to rows. A block owns ROWS queries (in backward: keys) of one head, and loops over the other side in steps; the
// next step is copied into shared memory (cp.async, two stages) while this one is multiplied. A warp always owns the same 16 or
// 32 rows. Its part of s, p, dp and ds stays in registers: the layout in which tensor cores leave a product is also the layout of
// an operand, and only the four lanes that hold a row are needed for its maximum and sum. Backward is transposed: scores are
// computed as s^T = k q^T, rows are keys, and p^T and ds^T are the operands in registers.
//     Only dq is a sum over keys, hence over warps and blocks. Warps share their ds in shared memory (2 bytes per pair), and each
// computes a part of the step's dq for the block's keys. Each block has its own sums of dq, in float32 in global memory: a thread
// loads the sum that it stored for the block's previous keys, adds to it, and stores it again. Blocks that share the keys of a
// head have separate sums: of `splits` blocks, block i has the key tiles i, i + splits, ..., and flash_attention_dq adds their
// sums up, in order. `splits` depends on shapes only, so every GPU gives the same bits.
//     Grouped queries cost nothing: query head h reads key head h / R, and a block of backward loops over all R heads of its
// group.
//
// Limits, in clocks of an sm_80 multiprocessor for 4096 pairs (32 queries, 128 keys); ldmatrix moves 128 bytes per clock:
//                                D = 64                               D = 128
//                        tensor cores   shared memory         tensor cores   shared memory
//     dq, dk with dv          1792           1280                  3584           3840         two kernels, 14 D (earlier)
//     backward                1280           1216                  2560           2880         one kernel, 10 D
// Sums of dq move 8 bytes per query, column and tile of 128 keys, read and written: 160 FLOPs per byte. From L2 that is 256 of
// the 1280 clocks. If L2 cannot hold the sums of all running blocks, 4 R T D bytes each, they come from DRAM, which allows 320
// TFLOP/s per 2 TB/s. At most 16 blocks share a head, and only as many as make 256 blocks in all (D > 64: 128): memory grows with
// T. There are three launches instead of two; the first and the last move 16 D bytes per query. If a head has one tile of keys
// (S <= 128), that gains nothing, but costs no more than two kernels' second reads.
//     With 32 rows per warp, each read of the other side serves two products. That keeps shared memory from being the limit: in
// forward at D = 64 a step of 48 keys is 96 products, 192 clocks at sm_80's rate, and 32 reads, 128 clocks. Two sums of 32 rows
// do not fit at D = 128: backward has 16 rows per warp there, eight warps per block, and steps of 64 queries.
//     Registers limit the number of warps: up to 192 of 255 are sums.
//                          registers           KiB shared       warps per multiprocessor
//                        sm_80   sm_90                            sm_80   sm_90
//     forward, D = 64     168     168              40               12      12
//     forward, D = 128    255     254              80                8       8
//     backward, D = 64    255     255              56.5              8       8
//     backward, D = 128   255     255             145                8       8
// Blocks on sm_86, sm_89 and sm_120 have 99 KiB (SHARED_KIB). At D = 128 backward takes steps of 16 queries there (84 KiB, 227
// registers), and forward eight warps of 16 rows. Their tensor cores do a half or a quarter of sm_80's products per clock.
//
// Fused: scaling, masking, softmax and its gradient. delta needs all of D, and every tile of keys needs delta, so it is computed
// once beforehand, together with the bounds of each step. Keys that no query of a block sees are not loaded, those that no query
// of a warp sees are not multiplied, and masks are applied only where an interval ends inside a step. (B, H, T, D) views of
// (B, T, H, D) memory are read in place, through their strides, and results are written as (B, T, H, D). dq, dk and dv have a
// stride over T, because they may share rows.
//
// If DTYPE is bfloat16 or half, products run on tensor cores with sums in float32; p and ds are rounded to DTYPE when they become
// operands. If it is float, the same kernels use plain multiplications and additions, in the same layout.

#include "flash_attention.cuh"


// ------------------------------------------------------------------------------------------------ forward

// Over the four lanes that hold a row.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// exp(scale (s - top)), with scale2 = scale log2 e. The second form keeps its digits when both are large.
__device__ __forceinline__ float exp_above(float s, float top, float scale2) {
  return exp2f(PAIRS ? fmaf(s, scale2, -top * scale2) : (s - top) * scale2);
}

// Replaces scores by p = exp_above(s, top), and rescales z and o, the running sums of p and of p v, to a new top. A row's top is
// its largest score so far, but it is updated only if a p in some row of the warp would exceed 2^8. Smaller ones are harmless, and
// most steps need not rescale o.
template <int M, int N>
__device__ __forceinline__ void online_softmax(
    float (&s)[M][N / 8][4], float (&o)[M][W / 8][4], float (&top)[M][2], float (&z)[M][2], float scale2) {
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
      z[m][r] *= shrink[m][r];                                             // over this lane's columns; added up at the end
      #pragma unroll
      for (int n = 0; n < N / 8; n++)
        #pragma unroll
        for (int j = 0; j < 2; j++) z[m][r] += s[m][n][2 * r + j] = exp_above(s[m][n][2 * r + j], base, scale2);
    }
  if (!rises) return;
  #pragma unroll
  for (int m = 0; m < M; m++)
    #pragma unroll
    for (int n = 0; n < W / 8; n++)
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
  Element* const stages = q_tile + Forward::ROWS * PITCH;               // keys and values, twice
  const int batch = blockIdx.z, head = blockIdx.y, H = gridDim.y, k_head = head / (H / K);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warp_row = warp * Forward::WARP_ROWS;
  const int t0 = (gridDim.x - 1 - blockIdx.x) * Forward::ROWS;      // causal: tiles with the most keys start first
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
    k_rows.load<STEP, THREADS>(stage + STEP * PITCH, S - s0, v_apart);
    k_rows.skip(STEP);
  };
  if (keys.first < keys.last) {
    k_rows.skip(keys.first);
    load_step(stages, keys.first);
  }
  copy_commit();

  float o[M][W / 8][4] = {}, z[M][2] = {}, top[M][2];
  for (int m = 0; m < M; m++) top[m][0] = top[m][1] = -INFINITE;
  int now = 0;                                                      // 0 or 1: the stage being multiplied
  for (int s0 = keys.first; s0 < keys.last; s0 += STEP, now ^= 1) {
    copy_wait<0>();                                                 // for the step of keys
    __syncthreads();                                                // this step has arrived, and the last one is done
    if (s0 + STEP < keys.last) load_step(stages + (now ^ 1) * 2 * STEP * PITCH, s0 + STEP);
    copy_commit();
    const Bounds bounds = seen_by_warp[warp];
    if (bounds.nobody_sees(s0, s0 + STEP)) continue;
    const Element* const k_tile = stages + now * 2 * STEP * PITCH;
    float s[M][STEP / 8][4] = {};
    Product<Element>::rows_by_rows<M, STEP>(s, q_tile + warp_row * PITCH, k_tile);
    if (!bounds.all_see(s0, s0 + STEP)) hide<M, STEP>(s, seen + warp_row, s0);
    online_softmax<M, STEP>(s, o, top, z, scale2);
    Product<Element>::scores_by_rows<M, STEP>(o, s, k_tile + STEP * PITCH);
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
      for (int n = 0; n < W / 8; n++) {
        o[m][n][2 * r] *= inverse;
        o[m][n][2 * r + 1] *= inverse;
      }
    }
  copy_wait<0>();
  __syncthreads();                                                  // no copy into q_tile is in flight, even without steps
  out += (((Index)batch * T + t0 + warp_row) * H + head) * D;
  store_rows<M>(out, (Index)H * D, T - t0 - warp_row, o, q_tile + warp_row * PITCH);
}


// ------------------------------------------------------------------------------------------------ backward

// delta (B, H, T), and the bounds of every STEP queries; a block per step. grid (steps, H, B)
extern "C" __global__ void __launch_bounds__(128) flash_attention_delta(
    float* delta, Bounds* bounds_of, const Element* out, Index out_batch, Index out_head, int out_time,
    const Element* dout, Index dout_batch, Index dout_head, int dout_time,
    const INTERVAL* first, const INTERVAL* last, int T, int S, int interval_batch) {
  constexpr int STEP = Backward::STEP;
  const int batch = blockIdx.z, head = blockIdx.y, H = gridDim.y, step = blockIdx.x, t0 = step * STEP;
  const int lane = threadIdx.x % CHUNKS, column = lane * PER_CHUNK;
  out += batch * out_batch + head * out_head + column;
  dout += batch * dout_batch + head * dout_head + column;
  delta += ((Index)batch * H + head) * T;
  #pragma unroll
  for (int i = 0; i < STEP; i += 128 / CHUNKS) {                    // CHUNKS lanes per row
    const int row = i + threadIdx.x / CHUNKS, t = t0 + row;
    float sum = 0.f;
    if (row < STEP && t < T && column < D) {
      const auto a = load<PER_CHUNK>(out + (Index)t * out_time), b = load<PER_CHUNK>(dout + (Index)t * dout_time);
      #pragma unroll
      for (int j = 0; j < PER_CHUNK; j++) sum += real(a.at[j]) * real(b.at[j]);
    }
    #pragma unroll
    for (int j = 1; j < CHUNKS; j *= 2) sum += __shfl_xor_sync(~0u, sum, j);
    if (lane == 0 && row < STEP && t < T) delta[t] = sum;
  }
  if (threadIdx.x >= 32 || head || (batch && !interval_batch)) return;
  first += (Index)batch * interval_batch;
  last += (Index)batch * interval_batch;
  int t = t0 + threadIdx.x % STEP;
  Bounds bounds = warp_bounds(interval(first, last, t, T, S), t < T);
  if (STEP > 32) {
    t += 32;
    bounds = both(bounds, warp_bounds(interval(first, last, t, T, S), t < T));
  }
  if (threadIdx.x == 0) bounds_of[(Index)batch * gridDim.x + step] = bounds;
}

// grid (splits, K, B). Here rows are keys and columns are queries.
extern "C" __global__ void __launch_bounds__(Backward::THREADS, Backward::BLOCKS) flash_attention_backward(
    Element* dk, Element* dv, int dkv_time, float* dq_sums, const Element* q, Index q_batch, Index q_head, int q_time,
    const Element* k, const Element* v, Index kv_batch, Index kv_head, int kv_time,
    const Element* dout, Index dout_batch, Index dout_head, int dout_time, const float* lse, const float* delta,
    const Bounds* bounds_of, const INTERVAL* first, const INTERVAL* last, int H, int T, int S, int interval_batch, float scale) {
  constexpr int M = Backward::M, STEP = Backward::STEP, ROWS = Backward::ROWS, THREADS = Backward::THREADS;
  constexpr int WARPS = Backward::WARPS, WARP_ROWS = Backward::WARP_ROWS, DQ_M = DqTiling::M, DQ_N = 2 * DqTiling::SIXTEENS;
  SHARED_MEMORY(Element, k_tile);
  Element* const v_tile = k_tile + ROWS * PITCH;
  Element* const stages = v_tile + ROWS * PITCH;                    // queries and dout, twice
  Element* const ds_tile = stages + 2 * 2 * STEP * PITCH;           // keys x queries
  float* const statistics = reinterpret_cast<float*>(ds_tile + ROWS * STEP);        // the queries' lse and delta, twice
  const int batch = blockIdx.z, k_head = blockIdx.y, K = gridDim.y, R = H / K;
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, warp = threadIdx.x / 32, warp_row = warp * WARP_ROWS;
  const int query = warp % DqTiling::ROW_GROUPS * (16 * DQ_M), sixteen = warp / DqTiling::ROW_GROUPS * DqTiling::SIXTEENS;
  q += batch * q_batch + k_head * R * q_head;
  k += batch * kv_batch + k_head * kv_head;
  v += batch * kv_batch + k_head * kv_head;
  dout += batch * dout_batch + k_head * R * dout_head;
  lse += ((Index)batch * H + k_head * R) * T;
  delta += ((Index)batch * H + k_head * R) * T;
  const int all_steps = (T + STEP - 1) / STEP;
  bounds_of += (Index)(interval_batch ? batch : 0) * all_steps;
  first += (Index)batch * interval_batch;
  last += (Index)batch * interval_batch;

  for (int s0 = blockIdx.x * ROWS; s0 < S; s0 += gridDim.x * ROWS) {
    const int warp_s0 = s0 + warp_row, warp_s1 = warp_s0 + WARP_ROWS;
    Interval steps = {LARGEST_INT, 0}, keys = {LARGEST_INT, 0};     // steps that see some of these keys; the keys seen
    for (int i = threadIdx.x; i < all_steps; i += THREADS) {
      const Bounds bounds = bounds_of[i];
      if (bounds.nobody_sees(s0, s0 + ROWS)) continue;
      steps = {min(steps.first, i), i + 1};
      keys = {min(keys.first, bounds.begin), max(keys.last, bounds.end)};
    }
    __shared__ Interval steps_of_warp[WARPS], keys_of_warp[WARPS];
    steps_of_warp[warp] = warp_union(steps);
    keys_of_warp[warp] = warp_union(keys);
    steps = block_union(steps_of_warp);                             // a barrier: no thread still needs the old tiles
    keys = block_union(keys_of_warp);
    const Rows k_rows(k + (Index)s0 * kv_time, kv_time);
    k_rows.load<ROWS, THREADS>(k_tile, Interval{keys.first - s0, keys.last - s0});
    k_rows.load<ROWS, THREADS>(v_tile, Interval{keys.first - s0, keys.last - s0}, v - k);
    Rows q_rows(q, q_time), dout_rows(dout, dout_time);
    const auto load_step = [&](int stage, int head, int step) {
      Element* const tile = stages + stage * 2 * STEP * PITCH;
      q_rows.load<STEP, THREADS>(tile, T - step * STEP, head * q_head + (Index)(step * STEP) * q_time);
      dout_rows.load<STEP, THREADS>(tile + STEP * PITCH, T - step * STEP, head * dout_head + (Index)(step * STEP) * dout_time);
      const int t = step * STEP + threadIdx.x % STEP;
      if (threadIdx.x < 2 * STEP)
        copy_async_4(
            statistics + stage * 2 * STEP + threadIdx.x, (threadIdx.x < STEP ? lse : delta) + (Index)head * T + t, t < T);
    };
    if (steps.first < steps.last) {
      load_step(0, 0, steps.first);
    }
    copy_commit();

    float dk_acc[M][W / 8][4] = {}, dv_acc[M][W / 8][4] = {};
    int now = 0, next_head = 0;
    for (int next = steps.first; next < steps.last; now ^= 1) {
      copy_wait<0>();                                               // for the step of queries
      __syncthreads();                                              // this step is there, and the last one is done
      const int step = next++, head = next_head;
      if (next == steps.last && head + 1 < R) {                     // on to the next query head
        next_head++;
        next = steps.first;
      }
      if (next < steps.last) load_step(now ^ 1, next_head, next);
      copy_commit();
      const Bounds bounds = bounds_of[step];
      if (bounds.nobody_sees(s0, s0 + ROWS)) continue;
      const Element* const q_tile = stages + now * 2 * STEP * PITCH;
      const Element* const dout_tile = q_tile + STEP * PITCH;
      const float* const step_lse = statistics + now * 2 * STEP;
      const float* const step_delta = step_lse + STEP;

      float ds[M][STEP / 8][4] = {};
      const bool sees = !bounds.nobody_sees(warp_s0, warp_s1);
      if (sees) {
        float p[M][STEP / 8][4] = {};
        Product<Element>::rows_by_rows<M, STEP>(p, k_tile + warp_row * PITCH, q_tile);
        if (!bounds.all_see(warp_s0, warp_s1)) hide_columns<M, STEP>(p, first, last, step * STEP, T, S, warp_s0);
        #pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
          const float2 column_lse = *reinterpret_cast<const float2*>(step_lse + 8 * n + 2 * c);
          #pragma unroll
          for (int m = 0; m < M; m++)
            #pragma unroll
            for (int j = 0; j < 4; j++)
              p[m][n][j] = exp2f(fmaf(p[m][n][j], scale, -(j % 2 ? column_lse.y : column_lse.x)) * LOG2_E);
        }
        Product<Element>::rows_by_rows<M, STEP>(ds, v_tile + warp_row * PITCH, dout_tile);
        #pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
          const float2 column_delta = *reinterpret_cast<const float2*>(step_delta + 8 * n + 2 * c);
          #pragma unroll
          for (int m = 0; m < M; m++)
            #pragma unroll
            for (int j = 0; j < 4; j++) ds[m][n][j] = p[m][n][j] * (ds[m][n][j] - (j % 2 ? column_delta.y : column_delta.x));
        }
        Product<Element>::scores_by_rows<M, STEP>(dv_acc, p, dout_tile);
      }
      #pragma unroll
      for (int m = 0; m < M; m++)
        #pragma unroll
        for (int n = 0; n < STEP / 8; n++)
          #pragma unroll
          for (int r = 0; r < 2; r++) {
            const int column = 8 * n + 2 * c;
            Element* const to_chunk = score_chunk<STEP>(ds_tile, warp_row + 16 * m + 8 * r + g, column / PER_CHUNK);
            put_pair(to_chunk + column % PER_CHUNK, ds[m][n][2 * r], ds[m][n][2 * r + 1]);
          }

      float dq_acc[DQ_M][DQ_N][4] = {};                             // continues the sum over the block's previous keys
      float4* const part = dq_part(dq_sums, blockIdx.x, batch, gridDim.z, k_head * R + head, H, step, all_steps)
                           + (query / 16 * (W / 8) + 2 * sixteen) * 32 + lane;
      const bool is_first = s0 - int(gridDim.x) * ROWS < bounds.begin / ROWS * ROWS;
      if (!is_first) {
        #pragma unroll
        for (int m = 0; m < DQ_M; m++)
          #pragma unroll
          for (int n = 0; n < DQ_N; n++) {
            if (!DqTiling::EVEN && sixteen + n / 2 >= W / 16) break;
            const float4 sum = part[(m * (W / 8) + n) * 32];
            dq_acc[m][n][0] = sum.x; dq_acc[m][n][1] = sum.y; dq_acc[m][n][2] = sum.z; dq_acc[m][n][3] = sum.w;
          }
      }
      if (sees) Product<Element>::scores_by_rows<M, STEP>(dk_acc, ds, q_tile);
      __syncthreads();                                              // ds is there
      Product<Element>::columns_by_rows<ROWS, STEP>(dq_acc, ds_tile, k_tile, query, sixteen);
      #pragma unroll
      for (int m = 0; m < DQ_M; m++)
        #pragma unroll
        for (int n = 0; n < DQ_N; n++) {
          if (!DqTiling::EVEN && sixteen + n / 2 >= W / 16) break;
          part[(m * (W / 8) + n) * 32] = {dq_acc[m][n][0], dq_acc[m][n][1], dq_acc[m][n][2], dq_acc[m][n][3]};
        }
    }

    #pragma unroll
    for (int m = 0; m < M; m++)
      #pragma unroll
      for (int n = 0; n < W / 8; n++)
        #pragma unroll
        for (int i = 0; i < 4; i++) dk_acc[m][n][i] *= scale;
    copy_wait<0>();
    __syncthreads();                                                // tiles are free, and no copy into them is in flight
    const Index at = ((Index)batch * S + warp_s0) * dkv_time + k_head * D;
    store_rows<M>(dk + at, dkv_time, S - warp_s0, dk_acc, k_tile + warp_row * PITCH);
    store_rows<M>(dv + at, dkv_time, S - warp_s0, dv_acc, v_tile + warp_row * PITCH);
  }
}

// dq (B, T, H, D) = scale times the sum over splits. A thread has rows g and g + 8 of 16 queries, and 8 columns. grid (x, H, B)
extern "C" __global__ void __launch_bounds__(256) flash_attention_dq(
    Element* dq, int dq_time, const float* dq_sums, const Bounds* bounds_of, int T, int splits, int interval_batch, float scale) {
  constexpr int STEP = Backward::STEP, ROWS = Backward::ROWS;
  const int batch = blockIdx.z, head = blockIdx.y, H = gridDim.y, steps = (T + STEP - 1) / STEP;
  const int i = blockIdx.x * 256 + threadIdx.x, g = i % 8, n = i / 8 % (W / 8), t = i / W * 16 + g, step = t / STEP;
  if (step >= steps || 8 * n >= D) return;
  const Bounds bounds = bounds_of[(Index)(interval_batch ? batch : 0) * steps + step];
  const int first_tile = bounds.begin / ROWS, tiles = bounds.begin < bounds.end ? (bounds.end - 1) / ROWS + 1 - first_tile : 0;
  float sum[2][8] = {};
  for (int split = 0; split < splits; split++) {
    if ((split + splits - first_tile % splits) % splits >= tiles) continue;           // this split has none of these tiles
    const float4* const part = dq_part(const_cast<float*>(dq_sums), split, batch, gridDim.z, head, H, step, steps)
                               + (t % STEP / 16 * (W / 8) + n) * 32 + 4 * g;
    #pragma unroll
    for (int c = 0; c < 4; c++) {
      const float4 of_lane = part[c];
      sum[0][2 * c] += of_lane.x;
      sum[0][2 * c + 1] += of_lane.y;
      sum[1][2 * c] += of_lane.z;
      sum[1][2 * c + 1] += of_lane.w;
    }
  }
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    if (t + 8 * r >= T) return;
    Element* const to = dq + ((Index)batch * T + t + 8 * r) * dq_time + head * D + 8 * n;
    #pragma unroll
    for (int j = 0; j < 8; j += PER_CHUNK) {
      Vector<Element, PER_CHUNK> v;
      #pragma unroll
      for (int l = 0; l < PER_CHUNK; l++) v.at[l] = element(scale * sum[r][j + l]);
      if (8 * n + j < D) store<PER_CHUNK>(to + j, v);
    }
  }
}
