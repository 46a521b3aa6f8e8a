// kernels/tensor_cores.cuh for the emulator: the same functions, lane by lane as the PTX ISA describes them.
//
// An asynchronous copy may happen at any moment between its call and the wait for its group. Here chance decides for each copy
// whether it happens at once or when it is waited for: who reads without waiting finds the poison of shared memory, and who
// copies into a tile that others still read destroys it.

// Lane by lane the same, from sm_80 on in one instruction.
template <bool LEAST> inline int reduce(unsigned mask, int value) {
  int mine = value;
  emulator::collective(mask, &mine, [](void** lanes, unsigned mask) {
    int all = LEAST ? 0x7FFFFFFF : -0x7FFFFFFF - 1;
    for (int i = 0; i < 32; i++) if (mask >> i & 1) all = LEAST ? min(all, *(int*)lanes[i]) : max(all, *(int*)lanes[i]);
    for (int i = 0; i < 32; i++) if (mask >> i & 1) *(int*)lanes[i] = all;
  });
  return mine;
}
inline int __reduce_min_sync(unsigned mask, int value) { return reduce<true>(mask, value); }
inline int __reduce_max_sync(unsigned mask, int value) { return reduce<false>(mask, value); }

struct Product16 { float* d; const unsigned *a, *b; };

template <class T> inline void multiply_add(float* d, const unsigned* a, const unsigned* b, T) {
  Product16 mine = {d, a, b};
  emulator::collective(~0u, &mine, [](void** arguments, unsigned) {
    Product16** lanes = reinterpret_cast<Product16**>(arguments);
    const auto half_of = [](unsigned pair, int i) { return Convert<T>::to(T{(unsigned short)(pair >> 16 * i)}); };
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 2; i++) {
        const int g = lane / 4, column = lane % 4 * 2 + i;
        for (int j = 0; j < 4; j++) a[g + j % 2 * 8][column + j / 2 * 8] = half_of(lanes[lane]->a[j], i);
        for (int j = 0; j < 2; j++) b[column + 8 * j][g] = half_of(lanes[lane]->b[j], i);
      }
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
        lanes[lane]->d[i] += sum;
      }
  });
}

template <class T> inline unsigned pack(float low, float high, T) {
  return Convert<T>::from(low).bits | (unsigned)Convert<T>::from(high).bits << 16;
}

struct Matrices { unsigned* r; const unsigned short* row; };

inline unsigned shared_address(const void* p) { return (const char*)p - emulator::dynamic_shared; }

template <bool TRANSPOSED> inline void load_four(unsigned* r, unsigned row) {
  if (row % 16) emulator::fail("load_matrices: a row begins at an address that 16 does not divide");
  if (row + 16ul > emulator::dynamic_shared_bytes) emulator::fail("load_matrices: a row lies outside of shared memory");
  Matrices mine = {r, (const unsigned short*)(emulator::dynamic_shared + row)};
  emulator::collective(~0u, &mine, [](void** arguments, unsigned) {
    Matrices** lanes = reinterpret_cast<Matrices**>(arguments);
    for (int lane = 0; lane < 32; lane++)
      for (int i = 0; i < 4; i++) {
        const int row = TRANSPOSED ? lane % 4 * 2 : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2;
        const unsigned first = lanes[8 * i + row]->row[column];
        const unsigned second = TRANSPOSED ? lanes[8 * i + row + 1]->row[column] : lanes[8 * i + row]->row[column + 1];
        lanes[lane]->r[i] = first | second << 16;
      }
  });
}
inline void load_matrices(unsigned* r, unsigned row) { load_four<false>(r, row); }
inline void load_matrices_transposed(unsigned* r, unsigned row) { load_four<true>(r, row); }

// ------------------------------------------------------------------------------------------------ copies

struct Copy {
  char* to;
  const char* from;
  int size;
  bool there;
  void run() const {
    if (there) __builtin_memcpy(to, from, size);
    else __builtin_memset(to, 0, size);
  }
};

struct Copies {  // of one thread: those that wait, and where each group ends
  static const int MOST = 256;
  Copy waiting[MOST];
  int count, group_ends[MOST], groups;
  unsigned long block;
};
static Copies copies_of[1024];
static unsigned copy_chance = 1;

inline Copies& my_copies() {
  Copies& mine = copies_of[emulator::thread()];
  if (mine.block != emulator::block_number) {
    mine.block = emulator::block_number;
    mine.count = mine.groups = 0;
  }
  return mine;
}

inline void copy_async(void* to, const void* from, int size, bool there) {
  if ((unsigned long)to % size || (there && (unsigned long)from % size))
    emulator::fail("copy_async: %d bytes at an address that %d does not divide", size, size);
  const long offset = (char*)to - emulator::dynamic_shared;
  if (offset < 0 || offset + size > (long)emulator::dynamic_shared_bytes)
    emulator::fail("copy_async: to outside of shared memory");
  const Copy copy = {(char*)to, (const char*)from, size, there};
  copy_chance = copy_chance * 1664525u + 1013904223u;
  Copies& mine = my_copies();
  if (copy_chance >> 31) return copy.run();
  if (mine.count == Copies::MOST) emulator::fail("copy_async: more than %d copies wait", Copies::MOST);
  mine.waiting[mine.count++] = copy;
}
inline void copy_async_16(void* to, const void* from, bool there) { copy_async(to, from, 16, there); }
inline void copy_async_4(void* to, const void* from, bool there) { copy_async(to, from, 4, there); }

inline void copy_commit() {
  Copies& mine = my_copies();
  if (mine.groups == Copies::MOST) emulator::fail("copy_commit: more than %d groups wait", Copies::MOST);
  mine.group_ends[mine.groups++] = mine.count;
}

template <int GROUPS_LEFT> inline void copy_wait() {
  Copies& mine = my_copies();
  const int done = mine.groups - GROUPS_LEFT;
  if (done <= 0) return;
  const int end = mine.group_ends[done - 1];
  for (int i = 0; i < end; i++) mine.waiting[i].run();
  for (int i = end; i < mine.count; i++) mine.waiting[i - end] = mine.waiting[i];
  for (int i = done; i < mine.groups; i++) mine.group_ends[i - done] = mine.group_ends[i] - end;
  mine.count -= end;
  mine.groups -= done;
}
