// Attention of a block of rows with every statistic, in one pass over scores that stay in cache.
//
// A block is a few rows times all the keys they can reach. Its scores are a product with packed keys, softmax and statistics
// are taken row by row, and the weights, still unnormalised, are multiplied with v. Vectors are those of the compiler
// (vector_size), so the file has no intrinsics and compiles for any instruction set; registers are counted for AVX-512 and
// AVX2. Plain C interface, called through ctypes; no torch headers.

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

typedef float vec __attribute__((vector_size(VL * 4)));
typedef int32_t ivec __attribute__((vector_size(VL * 4)));
typedef float anywhere __attribute__((vector_size(VL * 4), aligned(4), may_alias));

static inline vec load(const float* p) { return *reinterpret_cast<const anywhere*>(p); }
static inline void store(float* p, vec x) { *reinterpret_cast<anywhere*>(p) = x; }
static inline vec all(float x) { return x - vec{}; }
static inline vec max(vec a, vec b) { return a > b ? a : b; }
static inline float sum(vec a) { float s = 0; for (int i = 0; i < VL; ++i) s += a[i]; return s; }
static inline float top(vec a) { float s = a[0]; for (int i = 1; i < VL; ++i) s = std::max(s, a[i]); return s; }

// exp for x <= 0: 2^n times a polynomial on [-ln2/2, ln2/2]; 0 below -87.
static inline vec exp(vec x) {
  const vec low = all(-87.0f);
  const ivec alive = x > low;
  x = max(x, low);
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
  return alive ? y * reinterpret_cast<vec>(bits) : vec{};
}

extern "C" {

struct Edit {
  int64_t kind;  // 1 temperature, 2 key bias, 3 emphasis, 4 key mask, 5 redistribute, 6 identity, 7 uniform, 8 gate
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

int64_t vector_length() { return VL; }
int64_t call_size() { return sizeof(Call); }
int64_t edit_size() { return sizeof(Edit); }
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

// R x (N vectors) of z += weights [R x keys] v.
template <int R, int N>
static void product(const float* __restrict e, int64_t ld, const float* __restrict v, int64_t dv, int64_t keys, float* z) {
  vec acc[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) acc[r][c] = load(z + r * dv + c * VL);
  for (int64_t j = 0; j < keys; ++j) {
    vec b[N];
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) b[c] = load(v + j * dv + c * VL);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const float x = e[r * ld + j];
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) acc[r][c] += x * b[c];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) store(z + r * dv + c * VL, acc[r][c]);
}

template <int R>
static void product_columns(const float* e, int64_t ld, const float* v, int64_t dv, int64_t keys, float* z) {
  int64_t c = 0;
  for (; c + VCOLS <= dv; c += VCOLS) product<R, 4>(e, ld, v + c, dv, keys, z + c);
  for (; c + VL <= dv; c += VL) product<R, 1>(e, ld, v + c, dv, keys, z + c);
  for (int r = 0; r < R && c < dv; ++r)
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t x = c; x < dv; ++x) z[r * dv + x] += e[r * ld + j] * v[j * dv + x];
}

static void weighted(const float* e, int64_t ld, int64_t rows, const float* v, int64_t dv, int64_t keys, float* z) {
  constexpr int64_t STEP = 64;
  for (int64_t j = 0; j < keys; j += STEP) {
    const int64_t n = std::min(STEP, keys - j);
    int64_t r = 0;
    for (; r + VROWS <= rows; r += VROWS) product_columns<VROWS>(e + r * ld + j, ld, v + j * dv, dv, n, z + r * dv);
    for (; r < rows; ++r) product_columns<1>(e + r * ld + j, ld, v + j * dv, dv, n, z + r * dv);
  }
}

namespace {

struct Row {
  const Call& call;
  int64_t b, h, r;   // example, query head, row
  int64_t base;      // first key of the block
  int64_t n;         // keys of the block
  float* s;          // scores, then weights before the factor
  float factor = 0, lse = 0, sink = 0, entropy = 0;
  bool blind = false, moved = false;
  int64_t unmoved = 0;

  bool touched(const Edit& e) const {
    return (!e.heads || e.heads[h]) && (!e.rows || e.rows[(e.rows_batch ? b * call.rows : 0) + r]);
  }
  const uint8_t* keys(const uint8_t* set, int64_t by_batch) const { return set + (by_batch ? b * call.keys : 0) + base; }
  bool hidden(int64_t j) const { return s[j] <= HIDDEN / 2; }

  void hide() {
    const int64_t at = (call.interval_batch ? b * call.rows : 0) + r;
    const int64_t low = std::clamp<int64_t>(call.low[at] - base, 0, n), high = std::clamp<int64_t>(call.high[at] - base, low, n);
    if (call.softcap > 0)
      for (int64_t j = low; j < high; ++j) s[j] = call.softcap * std::tanh(s[j] / call.softcap);
    if (call.bias) {
      const float* bias = call.bias + b * call.bias_batch + h * call.bias_head + r * call.keys + base;
      for (int64_t j = low; j < high; ++j) s[j] = std::max(s[j] + bias[j], HIDDEN);
    }
    if (call.visible) {
      const uint8_t* seen = call.visible + b * call.visible_batch + h * call.visible_head + r * call.keys + base;
      for (int64_t j = low; j < high; ++j) s[j] = seen[j] ? s[j] : HIDDEN;
    }
    std::fill(s, s + low, HIDDEN);
    std::fill(s + high, s + n, HIDDEN);
  }

  void score_edits() {
    for (int64_t x = 0; x < call.n_edits; ++x) {
      const Edit& e = call.edits[x];
      if (e.kind > 4 || !touched(e)) continue;
      const float value = e.value ? e.value[h] : 0;
      const uint8_t* set = e.keys ? keys(e.keys, e.keys_batch) : nullptr;
      for (int64_t j = 0; j < n; ++j) {
        if (hidden(j) || (set && !set[j])) continue;
        if (e.kind == 1) s[j] /= value;
        else if (e.kind == 2) s[j] += value;
        else if (e.kind == 3) s[j] += value * std::fabs(s[j]);
        else s[j] = HIDDEN;
      }
    }
  }

  void softmax(int64_t padded) {
    constexpr int64_t RUN = 16 * VL;
    float most = HIDDEN;
    int64_t run = 0;
    for (int64_t j = 0; j < padded; j += RUN) {
      vec m = all(HIDDEN);
      for (int64_t x = j; x < std::min(j + RUN, padded); x += VL) m = max(m, load(s + x));
      const float here = top(m);
      if (here > most) most = here, run = j;
    }
    blind = most <= HIDDEN / 2;
    if (blind) {
      std::fill(s, s + padded, 0.0f);
      lse = -std::numeric_limits<float>::infinity();
      sink = call.sinks ? 1.0f : 0.0f;
      return;
    }
    if (call.argmax) {
      while (s[run] != most) ++run;
      call.argmax[at()] = run + base;
    }
    const vec at = all(most);
    vec total = {}, weighed = {};
    for (int64_t j = 0; j < padded; j += VL) {
      const vec t = load(s + j) - at, e = exp(t);
      total += e;
      weighed += e * t;
      store(s + j, e);
    }
    const float l = sum(total);
    lse = most + std::log(l);
    sink = call.sinks ? 1.0f / (1.0f + std::exp(lse - call.sinks[h])) : 0.0f;
    factor = (1 - sink) / l;
    const float weight = 1 - sink;
    entropy = weight > 0 ? weight * (std::log(l) - std::log(weight)) - factor * sum(weighed) : 0.0f;
  }

  int64_t at() const { return (b * call.heads + h) * call.rows + r; }

  void weight_edits(const std::vector<uint8_t>& sees) {
    const float total = 1 - sink;
    for (int64_t x = 0; x < call.n_edits; ++x) {
      const Edit& e = call.edits[x];
      if (e.kind < 5 || e.kind > 7 || !touched(e) || blind) continue;
      if (!moved)
        for (int64_t j = 0; j < n; ++j) s[j] *= factor;
      moved = true;
      factor = 1;
      if (e.kind == 5) redistribute(e);
      else blend(e, total, sees);
    }
    if (moved && call.entropy) {
      double found = 0;
      for (int64_t j = 0; j < n; ++j) found -= s[j] > 0 ? s[j] * std::log(s[j]) : 0.0f;
      entropy = static_cast<float>(found);
    }
  }

  void redistribute(const Edit& e) {
    const uint8_t *source = keys(e.keys, e.keys_batch), *target = keys(e.target, e.target_batch);
    double from = 0, to = 0;
    for (int64_t j = 0; j < n; ++j) {
      from += source[j] ? s[j] : 0.0f;
      to += target[j] ? s[j] : 0.0f;
    }
    if (!(to > 0)) { ++unmoved; return; }
    const float f = e.value[h], kept = 1 - f, grown = static_cast<float>(1 + f * from / to);
    for (int64_t j = 0; j < n; ++j) s[j] *= source[j] ? kept : target[j] ? grown : 1.0f;
  }

  void blend(const Edit& e, float total, const std::vector<uint8_t>& sees) {
    const float u = e.value[h];
    const int64_t own = call.position[r] - base;
    if (e.kind == 6 && (own < 0 || own >= n || !sees[own])) { ++unmoved; return; }
    int64_t count = 0;
    for (int64_t j = 0; j < n; ++j) count += sees[j];
    for (int64_t j = 0; j < n; ++j) {
      const float ideal = e.kind == 6 ? (j == own) : sees[j] / static_cast<float>(count);
      s[j] += u * (total * ideal - s[j]);
    }
  }

  float weighed(const uint8_t* set) const {
    float found = 0;
    for (int64_t j = 0; j < n; ++j) found += set[j] ? s[j] : 0.0f;
    return found * factor;
  }
  float one(int64_t key) const {
    const int64_t j = key - base;
    return j >= 0 && j < n ? s[j] * factor : 0.0f;
  }

  float distance() const {
    const int64_t i = call.position[r];
    double found = 0;
    if (!call.places) {
      for (int64_t j = 0; j < n; ++j) found += s[j] * static_cast<float>(std::abs(i - j - base));
      return static_cast<float>(found * factor);
    }
    for (int64_t j = 0; j < n; ++j) {
      double square = 0;
      for (int64_t a = 0; a < call.axes; ++a) {
        const double x = call.places[i * call.axes + a] - call.places[(j + base) * call.axes + a];
        square += x * x;
      }
      found += s[j] * std::sqrt(square);
    }
    return static_cast<float>(found * factor);
  }

  void largest(const std::vector<uint8_t>& sees) {
    const int64_t k = call.k_top;
    float* values = call.topk + at() * k;
    int64_t* found = call.topk_keys + at() * k;
    std::fill(values, values + k, 0.0f);
    std::fill(found, found + k, int64_t{-1});
    if (blind) return;
    for (int64_t j = 0; j < n; ++j) {
      if (!sees[j]) continue;
      int64_t x = k;
      while (x > 0 && (found[x - 1] < 0 || s[j] > values[x - 1])) --x;
      if (x == k) continue;
      for (int64_t y = k - 1; y > x; --y) { values[y] = values[y - 1]; found[y] = found[y - 1]; }
      values[x] = s[j];
      found[x] = j + base;
    }
    for (int64_t x = 0; x < k; ++x) values[x] *= factor;
  }

  void statistics(const std::vector<uint8_t>& sees) {
    const int64_t o = at(), i = call.position[r];
    call.lse[o] = lse;
    if (call.sink) call.sink[o] = sink;
    if (call.entropy) call.entropy[o] = entropy;
    if (call.largest) call.largest[o] = moved ? *std::max_element(s, s + n) : factor;
    if (call.argmax && blind) call.argmax[o] = -1;
    if (call.argmax && moved) call.argmax[o] = best(sees);
    if (call.distance) call.distance[o] = distance();
    if (call.first) call.first[o] = one(call.first_key[b]);
    if (call.previous) call.previous[o] = one(i - 1);
    if (call.self) call.self[o] = one(i);
    if (call.topk) largest(sees);
    for (int64_t x = 0; x < call.n_sets; ++x)
      call.mass[x * call.batch * call.heads * call.rows + o] = weighed(call.sets + (x * call.batch + b) * call.keys + base);
  }

  int64_t best(const std::vector<uint8_t>& sees) const {
    int64_t found = -1;
    for (int64_t j = 0; j < n; ++j)
      if (sees[j] && (found < 0 || s[j] > s[found])) found = j;
    return found + base;
  }

  void gate(float* z) const {
    for (int64_t x = 0; x < call.n_edits; ++x) {
      const Edit& e = call.edits[x];
      if (e.kind != 8 || !touched(e)) continue;
      for (int64_t c = 0; c < call.dv; ++c) z[c] *= e.value[h];
    }
  }
};

struct Work {
  std::vector<float> q, s, z;
  std::vector<uint8_t> sees;
  std::vector<float> factors;
};

int64_t block_rows(int64_t keys) {
  const int64_t fit = (128 * 1024) / std::max<int64_t>(keys, 1);
  return std::clamp<int64_t>(fit / QROWS * QROWS, QROWS, 4 * QROWS);
}

void block(const Call& call, const float* packed, int64_t b, int64_t h, int64_t r0, int64_t rows, int64_t segment, Work& w) {
  const int64_t kv = h / (call.heads / call.kv_heads), pair = b * call.kv_heads + kv;
  const int64_t panels = (call.keys + PANEL - 1) / PANEL;
  int64_t low = call.keys, high = 0;
  for (int64_t r = r0; r < r0 + rows; ++r) {
    const int64_t at = (call.interval_batch ? b * call.rows : 0) + r;
    if (call.low[at] >= call.high[at]) continue;
    low = std::min<int64_t>(low, call.low[at]);
    high = std::max<int64_t>(high, call.high[at]);
  }
  low = std::max<int64_t>(low, 0) / PANEL * PANEL;
  high = std::min<int64_t>(high, call.keys);
  if (high <= low) { low = 0; high = std::min<int64_t>(1, call.keys); }
  const int64_t n = high - low, padded = (n + PANEL - 1) / PANEL * PANEL, ld = padded + VL;
  w.s.resize(block_rows(call.keys) * ld + PANEL);
  const float* query = call.q + ((b * call.heads + h) * call.rows + r0) * call.d;
  const float* keys = packed + (pair * panels + low / PANEL) * call.d * PANEL;
  const int64_t groups = (rows + QROWS - 1) / QROWS;
  w.q.assign(groups * QROWS * call.d, 0.0f);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t f = 0; f < call.d; ++f)
      w.q[(r / QROWS * call.d + f) * QROWS + r % QROWS] = query[r * call.d + f] * call.scale;
  for (int64_t p = 0; p * PANEL < padded; ++p)
    for (int64_t g = 0; g < groups; ++g)
      scores(w.q.data() + g * QROWS * call.d, keys + p * call.d * PANEL, call.d, w.s.data() + g * QROWS * ld + p * PANEL, ld);
  const int64_t out = (segment * call.batch + b) * call.heads + h;
  const bool need = call.n_edits > 0 || call.topk || call.seen;
  w.factors.resize(rows);
  w.sees.resize(n);
  for (int64_t r = 0; r < rows; ++r) {
    Row row{call, b, h, r0 + r, low, n, w.s.data() + r * ld};
    row.hide();
    std::fill(row.s + n, row.s + padded, HIDDEN);
    if (call.n_edits) row.score_edits();
    if (need)
      for (int64_t j = 0; j < n; ++j) w.sees[j] = !row.hidden(j);
    if (call.seen)
      for (int64_t j = 0; j < n; ++j) call.seen[out * call.keys + low + j] += w.sees[j];
    row.softmax(padded);
    if (call.n_edits) row.weight_edits(w.sees);
    row.statistics(w.sees);
    w.factors[r] = row.factor;
    call.blind[out] += row.blind;
    call.unmoved[out] += row.unmoved;
  }
  if (call.received) {
    float* to = call.received + out * call.keys + low;
    for (int64_t j = 0; j < n; j += VL) {
      vec acc = {};
      for (int64_t r = 0; r < rows; ++r) acc += w.factors[r] * load(w.s.data() + r * ld + j);
      if (j + VL <= n) store(to + j, load(to + j) + acc);
      else
        for (int64_t c = j; c < n; ++c) to[c] += acc[c - j];
    }
  }
  if (!call.z) return;
  w.z.assign(rows * call.dv, 0.0f);
  weighted(w.s.data(), ld, rows, call.v + (pair * call.keys + low) * call.dv, call.dv, n, w.z.data());
  for (int64_t r = 0; r < rows; ++r) {
    float* z = call.z + ((b * call.heads + h) * call.rows + r0 + r) * call.dv;
    for (int64_t c = 0; c < call.dv; ++c) z[c] = w.z[r * call.dv + c] * w.factors[r];
    Row row{call, b, h, r0 + r, low, n, nullptr};
    if (call.n_edits) row.gate(z);
  }
}

template <class F>
void parallel(int64_t threads, int64_t items, F&& f) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t i = next++; i < items; i = next++) f(i);
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < std::min(threads, items); ++t) others.emplace_back(run);
  run();
  for (auto& t : others) t.join();
}

}  // namespace

extern "C" void attend(const Call* pointer) {
  const Call& call = *pointer;
  const int64_t panels = (call.keys + PANEL - 1) / PANEL, pairs = call.batch * call.kv_heads;
  std::vector<float> packed(pairs * panels * PANEL * call.d);
  parallel(call.threads, pairs, [&](int64_t p) {
    pack(call.k + p * call.keys * call.d, call.keys, call.d, packed.data() + p * panels * PANEL * call.d);
  });
  const int64_t step = block_rows(call.keys), blocks = (call.rows + step - 1) / step;
  const int64_t each = (blocks + call.segments - 1) / call.segments, heads = call.batch * call.heads;
  // Later rows of a causal mask cost more, so the last segments go first. Each writes its own sums: no races, one order.
  parallel(call.threads, heads * call.segments, [&](int64_t item) {
    Work work;
    const int64_t segment = call.segments - 1 - item / heads, b = item % heads / call.heads, h = item % call.heads;
    for (int64_t x = segment * each; x < std::min((segment + 1) * each, blocks); ++x)
      block(call, packed.data(), b, h, x * step, std::min(step, call.rows - x * step), segment, work);
  });
}
