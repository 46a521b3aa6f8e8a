// Draws each sequence's next token: numllama/generation/sampling.py, filter by filter.                 numllama/cuda/sample.py
//     repetition penalty -> (greedy ends here) -> temperature -> top-k -> top-p -> min-p -> draw
//
// Rows:    one block per row of V logits, which it reads about ten times; they stay in the GPU's cache.
// Sorting: none. The k-th largest logit, and the smallest of those with total probability p, are found digit by digit, in
//          histograms of 2048 bins over bit patterns that sort like the numbers. Probabilities are summed as integers, in
//          units of 2^-62: exact, so any order gives the same bits, even with atomics.
// Ties:    in ascending order, the later of two equal logits counts as the larger, as in a stable sort.
// Fused:   all of it, with log-probabilities and the counters of slots and positions: one launch per token.
// Floor:   logits are read once, V numbers per row.
// Result:  (3, rows): the token, its log-probability if requested, and the largest logit, infinite if one is NaN.
#define BINS 2048
#define DIGIT 11
typedef unsigned long long Units;

template <class R> struct KeyOf { typedef unsigned type; };
template <> struct KeyOf<double> { typedef Units type; };
typedef KeyOf<Real>::type Key;
#define KEY_BITS int(8 * sizeof(Key))

__device__ __forceinline__ Units bits_of(double x) { return Units(__double_as_longlong(x)); }
__device__ __forceinline__ unsigned bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ Key key_of(Real x) {  // sorts like x; 0 and -0 are equal
  const Key sign = Key(1) << (KEY_BITS - 1), bits = x == Real(0) ? Key(0) : bits_of(x);
  return bits & sign ? ~bits : bits | sign;
}

struct Shared {
  Units bins[BINS], partial[32], found, below;
  Real real_partial[32];
  int token;
};

// The sum over the threads before this one, and the total over all, of integers.
__device__ __forceinline__ Units sum_before(Units x, Units* partial, Units& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  Units upto = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const Units other = __shfl_up_sync(0xFFFFFFFFu, upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == 31) partial[warp] = upto;
  __syncthreads();
  Units before = 0;
  total = 0;
  for (int w = 0; w < warps; w++) {
    if (w == warp) before = total;
    total += partial[w];
  }
  __syncthreads();
  return before + upto - x;
}

// A row's remaining candidates and their probabilities.
struct Row {
  const Real* x;
  int V;
  Key least;
  Real top, sum;
  __device__ __forceinline__ Real weight(int i) const {  // relative to the largest
    const Real value = x[i];
    return key_of(value) < least ? Real(0) : exp(value - top);
  }
};

struct Place { Key key; Units left; };  // `left`: the target minus the sum of all below this key

// In ascending order, the first whose running sum (BY_WEIGHT: of probabilities; else the count) exceeds the target.
template <bool BY_WEIGHT> __device__ __forceinline__ Place first_beyond(const Row& row, Units target, Shared& s) {
  Key known = 0;
  const int each = BINS / blockDim.x;
  for (int low = KEY_BITS; low > 0;) {
    const int high = low;
    low = max(0, high - DIGIT);
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) s.bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.V; i += blockDim.x) {
      const Key key = key_of(row.x[i]);
      if (high < KEY_BITS && (key >> (high % KEY_BITS)) != known) continue;
      const Units units = BY_WEIGHT ? Units(double(row.weight(i) / row.sum) * 0x1p62) : Units(1);
      if (units) atomicAdd(&s.bins[int(key >> low) & ((1 << (high - low)) - 1)], units);
    }
    __syncthreads();
    Units mine = 0, total;
    for (int i = 0; i < each; i++) mine += s.bins[threadIdx.x * each + i];
    Units before = sum_before(mine, s.partial, total);
    target = min(target, total - 1);                       // rounding down must not drop everything: the largest stays
    if (before <= target && target < before + mine) {
      int bin = threadIdx.x * each;
      for (; before + s.bins[bin] <= target; bin++) before += s.bins[bin];
      s.found = bin;
      s.below = before;
    }
    __syncthreads();
    known = (high < KEY_BITS ? known << (high - low) : Key(0)) | Key(s.found);
    target -= s.below;
    __syncthreads();
  }
  return {known, target};
}

// Segments: thread t's has the elements from t * size to (t + 1) * size. A warp sums one segment after another, so that adjacent
// lanes read adjacent elements; `units` must return integers.
template <class Count> __device__ __forceinline__ Units segment_sum(int V, int size, Units* sums, const Count& units) {
  const int lane = threadIdx.x % 32;
  for (int segment = threadIdx.x / 32; segment < blockDim.x; segment += blockDim.x / 32) {
    Units sum = 0;
    for (int i = segment * size + lane; i < min(V, (segment + 1) * size); i += 32) sum += units(i);
    sum = warp_sum(sum);
    if (lane == 0) sums[segment] = sum;
  }
  __syncthreads();
  const Units mine = sums[threadIdx.x];
  __syncthreads();
  return mine;
}

struct CountEqual {
  const Real* x;
  Key key;
  __device__ __forceinline__ Units operator()(int i) const { return key_of(x[i]) == key; }
};
struct CountWeight {
  Row row;
  Real min_p, one;
  __device__ __forceinline__ Units operator()(int i) const {
    const Real w = row.weight(i);
    return w < min_p ? Units(0) : Units(w * one);
  }
};

extern "C" __global__ void __launch_bounds__(1024) sample(
    double* result, int* tokens, Real* scratch, const Element* __restrict__ logits, unsigned char* seen,
    const double* __restrict__ uniforms, int* drawn, int* slots, int* positions, int rows, int V, int stride, Real temperature, Real penalty,
    int top_k, double below_top_p, Real min_p, int has_logprobs) {
  __shared__ Shared s;
  const int b = blockIdx.x;
  logits += Index(b) * stride;
  Real* const x = scratch + Index(b) * V;
  if (seen) seen += Index(b) * V;

  const bool is_greedy = temperature == Real(0);
  Real largest = minus_infinity(), top = minus_infinity();
  for (int i = threadIdx.x; i < V; i += blockDim.x) {
    const Real raw = real(logits[i]);
    Real value = raw;
    if (seen && seen[i]) value = raw < Real(0) ? raw * penalty : raw / penalty;
    if (!is_greedy) value = value / temperature;
    x[i] = value;
    largest = max(largest, raw != raw ? -minus_infinity() : raw);
    top = max(top, value);
  }
  largest = row_max(largest, s.real_partial);
  top = row_max(top, s.real_partial);
  double logprob_sum = 0;
  if (has_logprobs) {
    for (int i = threadIdx.x; i < V; i += blockDim.x) logprob_sum += exp(real(logits[i]) - largest);
    logprob_sum = row_sum(logprob_sum, (double*)s.partial);
  }
  if (threadIdx.x == 0) s.token = V;
  __syncthreads();                                                     // x and token are written
  if (is_greedy || !(top - top == Real(0))) {                          // or logits are not finite: see `largest`
    int first = V - 1;
    for (int i = threadIdx.x; i < V; i += blockDim.x)
      if (x[i] == top) first = min(first, i);
    atomicMin(&s.token, first);
  } else {
    Row row = {x, V, 0, top, 1};
    if (top_k > 0 && top_k < V) row.least = first_beyond<false>(row, Units(V - top_k), s).key;
    const int size = (V + blockDim.x - 1) / blockDim.x;
    if (below_top_p >= 0) {
      double sum = 0;
      for (int i = threadIdx.x; i < V; i += blockDim.x) sum += row.weight(i);
      row.sum = Real(row_sum(sum, (double*)s.partial));
      const Place place = first_beyond<true>(row, Units(below_top_p * 0x1p62), s);
      row.least = place.key;
      Units total, mine = segment_sum(V, size, s.bins, CountEqual{x, place.key});
      Units rank = sum_before(mine, s.partial, total);
      if (total > 1) {                                                 // ties: leave out the first few
        if (mine) {
          const int from = threadIdx.x * size, to = min(V, from + size);
          for (int i = from; i < to; i++) {
            if (key_of(x[i]) != place.key) continue;
            const Units units = Units(double(row.weight(i) / row.sum) * 0x1p62);
            if (rank < place.left / units) x[i] = minus_infinity();
            rank++;
          }
        }
        __syncthreads();
      }
    }
    int bits = 0;
    while ((1 << bits) < V) bits++;
    const CountWeight count = {row, min_p, Real(Units(1) << (62 - bits))};
    Units total, mine = segment_sum(V, size, s.bins, count);
    Units before = sum_before(mine, s.partial, total);
    const double u = uniforms[Index(drawn[b]) * rows + b];             // floor(u * total), exactly
    const Units target = __umul64hi(Units(u * 0x1p53) << 11, total);
    if (before <= target && target < before + mine) {
      int i = threadIdx.x * size;
      for (; before + count(i) <= target; i++) before += count(i);
      s.token = i;
    }
  }
  __syncthreads();
  if (threadIdx.x) return;
  const int token = s.token < V ? s.token : V - 1;
  result[b] = token;
  result[rows + b] = has_logprobs ? double(real(logits[token]) - largest - Real(log(Real(logprob_sum)))) : 0.0;
  result[2 * rows + b] = largest;
  if (tokens) tokens[b] = token;
  if (seen) seen[token] = 1;
  if (!is_greedy) drawn[b]++;
  if (slots) slots[b]++;
  if (positions) positions[b]++;
}
