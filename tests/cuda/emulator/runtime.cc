// The emulator's scheduler: one fiber for each CUDA thread of a block, one block after another.
//
// A fiber runs until it waits: at __syncthreads for its block, at a shuffle, vote or tensor-core product for its warp. When all
// lanes of a warp's collective have arrived, it is computed once, over all of them. What a GPU leaves open is an option here:
// the order of lanes, warps and blocks is forward, backward or shuffled. A result that changes with it is a race.
// Shared memory is poisoned with NaN before each block. An error ends the launch and is returned as a sentence: a barrier or
// a collective that some threads never reach, an access that is not aligned (g++ -fsanitize=alignment calls us for each).
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"

#if !(defined(__x86_64__) && defined(__ELF__))
#include <ucontext.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The section of all __shared__ variables; one of them is here, so that there is a section in any case.
__attribute__((section("shared_memory"), used)) static char section_is_there[16];
extern "C" __attribute__((visibility("hidden"))) char __start_shared_memory[], __stop_shared_memory[];

namespace emulator {

char* dynamic_shared;
unsigned long dynamic_shared_bytes, block_number;

// ------------------------------------------------------------------------------------------------ fibers

#if defined(__x86_64__) && defined(__ELF__)
typedef void* Context;
extern "C" void emulator_switch(Context* save, Context load);
asm(".text\n.type emulator_switch,@function\nemulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size emulator_switch,.-emulator_switch\n");
static void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  void** top = (void**)((uintptr_t)(stack + size) & ~(uintptr_t)15);
  *--top = nullptr;
  *--top = (void*)entry;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  context = top;
}
static void swap_context(Context& from, Context& to) { emulator_switch(&from, to); }
#else
typedef ucontext_t Context;  // portable, and about ten times slower: it asks the system for the signal mask
static void make_context(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
static void swap_context(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

#if defined(__SANITIZE_ADDRESS__)
static const size_t STACK = 512 * 1024;
#else
static const size_t STACK = 64 * 1024;
#endif

enum State { READY, AT_COLLECTIVE, AT_BARRIER, DONE };
struct Fiber {
  Context context;
  char* stack = nullptr;
  State state;
  unsigned mask;
  void* argument;
  Combine combine;
  uint3 index;
};

static std::vector<Fiber> fibers;
static Fiber* running;
static Context scheduler;
static void (*kernel)(void**);
static void** kernel_arguments;
static char message[400];

int thread() { return int(running - fibers.data()); }

static void suspend(State state) {
  running->state = state;
  swap_context(running->context, scheduler);
}

static void report(const char* format, va_list values) {
  if (message[0]) return;  // the first error is the cause of the others
  int n = 0;
  if (running)
    n = snprintf(message, sizeof message, "block (%u, %u, %u), thread (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z,
                 threadIdx.x, threadIdx.y, threadIdx.z);
  else
    n = snprintf(message, sizeof message, "block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
  vsnprintf(message + n, sizeof message - n, format, values);
}

void fail(const char* format, ...) {
  va_list values;
  va_start(values, format);
  report(format, values);
  va_end(values);
  if (running) suspend(DONE);  // the scheduler ends the launch
}

void wait_for_block() { suspend(AT_BARRIER); }

void collective(unsigned mask, void* argument, Combine combine) {
  if (!(mask >> (thread() & 31) & 1)) fail("a lane calls a warp function whose mask 0x%08x leaves it out", mask);
  running->mask = mask;
  running->argument = argument;
  running->combine = combine;
  suspend(AT_COLLECTIVE);
}

static void entry() {
  kernel(kernel_arguments);
  suspend(DONE);
}

// ------------------------------------------------------------------------------------------------ one block

enum Order { FORWARD, BACKWARD, SHUFFLED };
static std::mt19937 random_numbers;

static void arrange(std::vector<int>& items, int count, Order order) {
  items.resize(count);
  std::iota(items.begin(), items.end(), 0);
  if (order == BACKWARD) std::reverse(items.begin(), items.end());
  if (order == SHUFFLED) std::shuffle(items.begin(), items.end(), random_numbers);
}

// Combine what the lanes of a warp wait for, where all lanes of a mask have arrived. Says whether any went on.
static bool combine_arrived(Fiber* warp, int lanes) {
  bool went_on = false;
  for (int lane = 0; lane < lanes; lane++) {
    if (warp[lane].state != AT_COLLECTIVE) continue;
    const unsigned mask = warp[lane].mask;
    void* arguments[32] = {};
    bool all = true;
    for (int i = 0; i < 32 && all; i++) {
      if (!(mask >> i & 1)) continue;
      const Fiber& other = warp[i];
      all = i < lanes && other.state == AT_COLLECTIVE && other.mask == mask && other.combine == warp[lane].combine;
      if (all) arguments[i] = other.argument;
    }
    if (!all) continue;
    warp[lane].combine(arguments, mask);
    for (int i = 0; i < lanes; i++) if (mask >> i & 1) warp[i].state = READY;
    went_on = true;
  }
  return went_on;
}

// Run a warp until each of its lanes is done or waits for the block.
static void run_warp(Fiber* warp, int lanes, Order order) {
  std::vector<int> turns;
  while (!message[0]) {
    bool ran = false;
    arrange(turns, lanes, order);
    for (int lane : turns) {
      if (warp[lane].state != READY) continue;
      ran = true;
      running = &warp[lane];
      threadIdx = running->index;
      swap_context(scheduler, running->context);
      running = nullptr;
      if (message[0]) return;
    }
    const bool waiting = std::any_of(warp, warp + lanes, [](Fiber& f) { return f.state == AT_COLLECTIVE; });
    if (!waiting) return;
    if (!combine_arrived(warp, lanes) && !ran) {
      char states[33] = {};
      for (int i = 0; i < lanes; i++) states[i] = "rwbd"[warp[i].state];
      fail("warp %d is divergent: some lanes never reach a shuffle, vote or product that others wait for "
           "(w waits there, b at a barrier, d is done: %s)", int(warp - fibers.data()) / 32, states);
    }
  }
}

static void run_block(Order order) {
  const int threads = blockDim.x * blockDim.y * blockDim.z, warps = (threads + 31) / 32;
  if ((int)fibers.size() < threads) fibers.resize(threads);
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack = (char*)malloc(STACK);
    fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    fiber.state = READY;
    make_context(fiber.context, fiber.stack, STACK, entry);
  }
  block_number++;
  std::vector<int> turns;
  while (!message[0]) {  // each round takes every thread to its next barrier
    arrange(turns, warps, order);
    for (int w : turns) run_warp(&fibers[32 * w], std::min(32, threads - 32 * w), order);
    int waiting = 0, done = 0;
    for (int i = 0; i < threads; i++) waiting += fibers[i].state == AT_BARRIER, done += fibers[i].state == DONE;
    if (done == threads || message[0]) return;
#if !defined(LEAVERS_DO_NOT_COUNT)  // a GPU does not wait for them, and CuPy's own kernels rely on it
    if (done) return fail("%d threads wait at a barrier that %d have left without", waiting, done);
#endif
    for (int i = 0; i < threads; i++) if (fibers[i].state == AT_BARRIER) fibers[i].state = READY;
  }
}

}  // namespace emulator

// ------------------------------------------------------------------------------------------------ called from Python

extern "C" unsigned long emulator_static_shared() {
  return __stop_shared_memory - __start_shared_memory - sizeof section_is_there;
}

extern "C" const char* emulator_launch(void (*invoke)(void**), const unsigned* grid, const unsigned* block,
                                       unsigned long shared_bytes, void** arguments, int order, unsigned seed) {
  using namespace emulator;
  message[0] = 0;
  kernel = invoke;
  kernel_arguments = arguments;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  random_numbers.seed(seed);
  dynamic_shared_bytes = shared_bytes;
  if (posix_memalign((void**)&dynamic_shared, 128, shared_bytes ? shared_bytes : 1)) return "no memory";
#if defined(__SSE__)
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);  // denormal numbers are zero, as CuPy compiles (-ftz=true)
#endif
  const unsigned long blocks = (unsigned long)grid[0] * grid[1] * grid[2];
  std::vector<int> turns;
  arrange(turns, int(blocks), (Order)order);
  for (int i : turns) {
    blockIdx = {i % grid[0], i / grid[0] % grid[1], i / (grid[0] * grid[1])};
    memset(dynamic_shared, 0xFF, shared_bytes);
    memset(__start_shared_memory, 0xFF, __stop_shared_memory - __start_shared_memory);
    run_block((Order)order);
    if (message[0]) break;
  }
#if defined(__SSE__)
  _mm_setcsr(mode);
#endif
  free(dynamic_shared);
  dynamic_shared = nullptr;
  return message[0] ? message : nullptr;
}

// g++ -fsanitize=alignment calls this where a pointer is used that is not aligned to what it points to.
struct Location { const char* file; uint32_t line, column; };
struct Type { uint16_t kind, info; char name[1]; };
struct Mismatch { Location location; const Type* type; unsigned char log_alignment, check; };
extern "C" void __ubsan_handle_type_mismatch_v1(const Mismatch* data, uintptr_t at) {
  const char* file = strrchr(data->location.file, '/');
  emulator::fail("%s:%u: a misaligned access: %s needs an address that %u divides", file ? file + 1 : data->location.file,
                 data->location.line, data->type->name, 1u << data->log_alignment);
}
extern "C" void __ubsan_handle_type_mismatch_v1_abort(const Mismatch* data, uintptr_t at) {
  __ubsan_handle_type_mismatch_v1(data, at);
}

// IEEE half precision, round to nearest even: what cvt.f32.f16 and cvt.rn.f16.f32 do.
extern "C" float emulator_half_to_float(unsigned short h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  uint32_t bits;
  if (exponent == 31) bits = sign | 0x7F800000u | fraction << 13;
  else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
  else return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
extern "C" unsigned short emulator_float_to_half(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const unsigned short sign = bits >> 16 & 0x8000;
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return 0x7FFF;
  if (bits >= 0x477FF000) return sign | 0x7C00;                       // 65520 and more round to infinity
  if (bits < 0x38800000) {                                            // below 2^-14: a multiple of 2^-24
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    return sign | (unsigned short)__builtin_rintf(magnitude * 0x1p24f);
  }
  bits += 0xFFF + (bits >> 13 & 1);
  return sign | (unsigned short)((bits - 0x38000000) >> 13);
}
