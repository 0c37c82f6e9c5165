// Vectors, the two small matrix products, and the description of a call that native.cpp and native_backward.cpp share.
//
// Vectors are those of the compiler (vector_size), so no file here has intrinsics and all compile for any instruction set;
// registers are counted for AVX-512 and AVX2. Plain C interface, called through ctypes; no torch headers.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int VL = 16, QROWS = 12, VROWS = 6;
#elif defined(__AVX__)
constexpr int VL = 8, QROWS = 6, VROWS = 3;
#else
constexpr int VL = 4, QROWS = 4, VROWS = 2;
#endif
constexpr int PANEL = 2 * VL;
constexpr int VCOLS = 4 * VL;
constexpr float HIDDEN = -1e30f;
constexpr float LEAST = 1e-30f;  // of the weight there is: a redistribution to less takes proportions from scores

typedef float vec __attribute__((vector_size(VL * 4)));
typedef int32_t ivec __attribute__((vector_size(VL * 4)));
typedef float anywhere __attribute__((vector_size(VL * 4), aligned(4), may_alias));

static inline vec load(const float* p) { return *reinterpret_cast<const anywhere*>(p); }
static inline void store(float* p, vec x) { *reinterpret_cast<anywhere*>(p) = x; }
static inline vec all(float x) { return x - vec{}; }
static inline vec max(vec a, vec b) { return a > b ? a : b; }
static inline float sum(vec a) { float s = 0; for (int i = 0; i < VL; ++i) s += a[i]; return s; }
static inline float top(vec a) { float s = a[0]; for (int i = 1; i < VL; ++i) s = std::max(s, a[i]); return s; }

// exp for x <= 0: 2^n times a polynomial on [-ln2/2, ln2/2]; 0 below -87; NaN stays NaN.
static inline vec exp(vec x) {
  const vec low = all(-87.0f);
  const ivec dead = x < low;
  x = dead ? low : x;
  const vec shift = all(12582912.0f);
  const vec n = (x * 1.44269504088896341f + shift) - shift;
  const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vec y = all(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
  return dead ? vec{} : y * reinterpret_cast<vec>(bits);
}

extern "C" {

// Kinds of edits, in the order of their stages. Of scores up to MASK_KEYS, of weights up to TO_UNIFORM, of z.
enum Kind : int64_t { TEMPERATURE = 1, BIAS_KEYS, EMPHASIZE, MASK_KEYS, REDISTRIBUTE, TO_IDENTITY, TO_UNIFORM, GATE };

struct Edit {
  int64_t kind;  // a Kind
  const uint8_t* heads;    // [head] or null
  const uint8_t* rows;     // [1 or batch, row] or null
  const uint8_t* keys;     // [1 or batch, key] or null
  const uint8_t* target;   // [1 or batch, key] or null
  const float* value;      // [head]
  int64_t rows_batch, keys_batch, target_batch;  // 1 when the set differs between examples
};

struct Call {
  int64_t batch, heads, kv_heads, rows, keys, d, dv;
  const float *q, *k, *v;  // contiguous [batch, head, row, d], [batch, kv head, key, d or dv]
  float scale, softcap;    // no cap: 0
  const int32_t *low, *high;  // keys seen by each row, [1 or batch, row]
  int64_t interval_batch;
  const int64_t* position;    // [row]
  const uint8_t* visible;     // [., ., row, key] or null, with strides of batch and head
  int64_t visible_batch, visible_head;
  const float* bias;
  int64_t bias_batch, bias_head;
  const float* sinks;  // [head] or null
  const Edit* edits;
  int64_t n_edits;
  float *z, *lse;  // [batch, head, row, dv] or null, [batch, head, row]
  float *entropy, *largest, *distance, *first, *previous, *self, *sink;  // [batch, head, row] or null
  int64_t* argmax;
  float* topk;  // [batch, head, row, k]
  int64_t* topk_keys;
  int64_t k_top;
  const uint8_t* sets;  // [set, batch, key]
  int64_t n_sets;
  float* mass;             // [set, batch, head, row]
  const int64_t* first_key;  // [batch]
  const double* places;      // [key, axis]
  int64_t axes;
  float* received;  // [segment, batch, head, key]
  int64_t* seen;    // [segment, batch, head, key]
  int64_t segments;
  int64_t *blind, *unmoved;  // [segment, batch, head]
  int64_t threads;
};
}

// One more than the place of the first edit of a kind that nobody here knows, or 0.
static inline int64_t unknown_edit(const Call& call) {
  for (int64_t x = 0; x < call.n_edits; ++x)
    if (call.edits[x].kind < TEMPERATURE || call.edits[x].kind > GATE) return x + 1;
  return 0;
}

// Keys in panels: [panel][feature][key of the panel], zeros past the end.
static void pack(const float* k, int64_t keys, int64_t d, float* out) {
  for (int64_t p = 0; p * PANEL < keys; ++p)
    for (int64_t f = 0; f < d; ++f)
      for (int c = 0; c < PANEL; ++c) {
        const int64_t j = p * PANEL + c;
        out[(p * d + f) * PANEL + c] = j < keys ? k[j * d + f] : 0.0f;
      }
}

// QROWS x PANEL scores: q packed [feature][row]; the next panel and the lines to be written are fetched meanwhile.
static void scores(const float* __restrict q, const float* __restrict panel, int64_t d, float* s, int64_t ld) {
  vec acc[QROWS][2] = {};
#pragma GCC unroll 12
  for (int r = 0; r < QROWS; ++r) {
    __builtin_prefetch(s + r * ld, 1);
    __builtin_prefetch(s + r * ld + VL, 1);
  }
  for (int64_t f = 0; f < d; ++f) {
    const vec a = load(panel + f * PANEL), b = load(panel + f * PANEL + VL);
    __builtin_prefetch(panel + (d + f) * PANEL);
    __builtin_prefetch(panel + (d + f) * PANEL + VL);
#pragma GCC unroll 12
    for (int r = 0; r < QROWS; ++r) {
      const float x = q[f * QROWS + r];
      acc[r][0] += x * a;
      acc[r][1] += x * b;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < QROWS; ++r) {
    store(s + r * ld, acc[r][0]);
    store(s + r * ld + VL, acc[r][1]);
  }
}

// R x (N vectors): out += a b over `steps` of b [step, width]; a is [R][step], or [step][R] where it is read ACROSS.
template <int R, int N, bool ACROSS>
static void product(const float* __restrict a, int64_t ld, const float* __restrict b, int64_t width, int64_t steps, float* out) {
  vec acc[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) acc[r][c] = load(out + r * width + c * VL);
  for (int64_t j = 0; j < steps; ++j) {
    vec x[N];
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) x[c] = load(b + j * width + c * VL);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const float y = a[ACROSS ? j * ld + r : r * ld + j];
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) acc[r][c] += y * x[c];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) store(out + r * width + c * VL, acc[r][c]);
}

template <int R, bool ACROSS>
static void product_columns(const float* a, int64_t ld, const float* b, int64_t width, int64_t steps, float* out) {
  int64_t c = 0;
  for (; c + VCOLS <= width; c += VCOLS) product<R, 4, ACROSS>(a, ld, b + c, width, steps, out + c);
  for (; c + VL <= width; c += VL) product<R, 1, ACROSS>(a, ld, b + c, width, steps, out + c);
  for (int r = 0; r < R && c < width; ++r)
    for (int64_t j = 0; j < steps; ++j)
      for (int64_t x = c; x < width; ++x) out[r * width + x] += a[ACROSS ? j * ld + r : r * ld + j] * b[j * width + x];
}

// z [row, dv] += weights [row, key] v [key, dv].
static void weighted(const float* e, int64_t ld, int64_t rows, const float* v, int64_t dv, int64_t keys, float* z) {
  constexpr int64_t STEP = 64;
  for (int64_t j = 0; j < keys; j += STEP) {
    const int64_t n = std::min(STEP, keys - j);
    int64_t r = 0;
    for (; r + VROWS <= rows; r += VROWS) product_columns<VROWS, false>(e + r * ld + j, ld, v + j * dv, dv, n, z + r * dv);
    for (; r < rows; ++r) product_columns<1, false>(e + r * ld + j, ld, v + j * dv, dv, n, z + r * dv);
  }
}

// Few rows fit into cache with all their keys; `buffers` of that size are held at once.
static inline int64_t block_rows(int64_t keys, int64_t buffers = 1) {
  const int64_t fit = (128 * 1024) / std::max<int64_t>(keys * buffers, 1);
  return std::clamp<int64_t>(fit / QROWS * QROWS, QROWS, 4 * QROWS);
}

// The keys that any of these rows sees, from a panel's start; at least one key.
struct Reach {
  int64_t low, high;
  int64_t keys() const { return high - low; }
  int64_t padded() const { return (keys() + PANEL - 1) / PANEL * PANEL; }
  int64_t ld() const { return padded() + VL; }
};

static inline Reach reach(const Call& call, int64_t b, int64_t r0, int64_t rows) {
  int64_t low = call.keys, high = 0;
  for (int64_t r = r0; r < r0 + rows; ++r) {
    const int64_t at = (call.interval_batch ? b * call.rows : 0) + r;
    if (call.low[at] >= call.high[at]) continue;
    low = std::min<int64_t>(low, call.low[at]);
    high = std::max<int64_t>(high, call.high[at]);
  }
  low = std::max<int64_t>(low, 0) / PANEL * PANEL;
  high = std::min<int64_t>(high, call.keys);
  if (high > low) return {low, high};
  return {0, std::min<int64_t>(1, call.keys)};
}

// s = factor x packed^T for rows x [row][d], in groups of QROWS; `groups` is scratch.
static inline void all_scores(const float* x, int64_t rows, int64_t d, float factor, const float* packed, int64_t padded,
                              float* s, int64_t ld, std::vector<float>& groups) {
  const int64_t n = (rows + QROWS - 1) / QROWS;
  groups.assign(n * QROWS * d, 0.0f);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t f = 0; f < d; ++f) groups[(r / QROWS * d + f) * QROWS + r % QROWS] = x[r * d + f] * factor;
  for (int64_t p = 0; p * PANEL < padded; ++p)
    for (int64_t g = 0; g < n; ++g)
      scores(groups.data() + g * QROWS * d, packed + p * d * PANEL, d, s + g * QROWS * ld + p * PANEL, ld);
}

template <class F>
static void parallel(int64_t threads, int64_t items, F&& f) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t i = next++; i < items; i = next++) f(i);
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < std::min(threads, items); ++t) others.emplace_back(run);
  run();
  for (auto& t : others) t.join();
}

// Every (example, kv head) of x [pair, key, d] in panels.
static inline std::vector<float> packed_pairs(const Call& call, const float* x, int64_t d) {
  const int64_t panels = (call.keys + PANEL - 1) / PANEL, pairs = call.batch * call.kv_heads;
  std::vector<float> packed(pairs * panels * PANEL * d);
  parallel(call.threads, pairs, [&](int64_t p) {
    pack(x + p * call.keys * d, call.keys, d, packed.data() + p * panels * PANEL * d);
  });
  return packed;
}
