// Attention of a block of rows with every statistic, in one pass over scores that stay in cache.
//
// A block is a few rows times all the keys they can reach. Its scores are a product with packed keys, softmax and statistics
// are taken row by row, and the weights, still unnormalised, are multiplied with v.

#include "native_row.h"

extern "C" {
int64_t vector_length() { return VL; }
int64_t call_size() { return sizeof(Call); }
int64_t edit_size() { return sizeof(Edit); }
}

namespace {

struct Work {
  std::vector<float> groups, s, z, factors;
  std::vector<uint8_t> sees;
};

// Softmax, edits and statistics of a block's rows; leaves weights before their factors.
void read_rows(const Call& call, int64_t b, int64_t h, int64_t r0, int64_t rows, Reach of, int64_t out, Work& w) {
  const int64_t n = of.keys();
  const bool need = call.n_edits > 0 || call.topk || call.seen;
  w.factors.resize(rows);
  w.sees.resize(n);
  for (int64_t r = 0; r < rows; ++r) {
    Row row{call, b, h, r0 + r, of.low, n, w.s.data() + r * of.ld()};
    row.hide();
    std::fill(row.s + n, row.s + of.padded(), HIDDEN);
    if (call.n_edits) row.score_edits();
    if (need) row.look(w.sees);
    if (call.seen)
      for (int64_t j = 0; j < n; ++j) call.seen[out * call.keys + of.low + j] += w.sees[j];
    row.softmax(of.padded());
    if (call.n_edits) row.weight_edits(w.sees);
    row.statistics(w.sees);
    w.factors[r] = row.factor;
    call.blind[out] += row.blind;
    call.unmoved[out] += row.unmoved;
  }
}

void add_received(float* to, int64_t rows, Reach of, const Work& w) {
  const int64_t n = of.keys();
  for (int64_t j = 0; j < n; j += VL) {
    vec acc = {};
    for (int64_t r = 0; r < rows; ++r) acc += w.factors[r] * load(w.s.data() + r * of.ld() + j);
    if (j + VL <= n) store(to + j, load(to + j) + acc);
    else
      for (int64_t c = j; c < n; ++c) to[c] += acc[c - j];
  }
}

void block(const Call& call, const float* packed, int64_t b, int64_t h, int64_t r0, int64_t rows, int64_t segment, Work& w) {
  const int64_t pair = b * call.kv_heads + h / (call.heads / call.kv_heads), panels = (call.keys + PANEL - 1) / PANEL;
  const int64_t out = (segment * call.batch + b) * call.heads + h, first = (b * call.heads + h) * call.rows + r0;
  const Reach of = reach(call, b, r0, rows);
  w.s.resize(block_rows(call.keys) * of.ld() + PANEL);
  const float* keys = packed + (pair * panels + of.low / PANEL) * call.d * PANEL;
  all_scores(call.q + first * call.d, rows, call.d, call.scale, keys, of.padded(), w.s.data(), of.ld(), w.groups);
  read_rows(call, b, h, r0, rows, of, out, w);
  if (call.received) add_received(call.received + out * call.keys + of.low, rows, of, w);
  if (!call.z) return;
  w.z.assign(rows * call.dv, 0.0f);
  weighted(w.s.data(), of.ld(), rows, call.v + (pair * call.keys + of.low) * call.dv, call.dv, of.keys(), w.z.data());
  for (int64_t r = 0; r < rows; ++r) {
    float* z = call.z + (first + r) * call.dv;
    for (int64_t c = 0; c < call.dv; ++c) z[c] = w.z[r * call.dv + c] * w.factors[r];
    Row row{call, b, h, r0 + r, of.low, of.keys(), nullptr};
    if (call.n_edits) row.gate(z);
  }
}

}  // namespace

// Returns what unknown_edit does, and then has done nothing.
extern "C" int64_t attend(const Call* pointer) {
  const Call& call = *pointer;
  if (const int64_t unknown = unknown_edit(call)) return unknown;
  const std::vector<float> packed = packed_pairs(call, call.k, call.d);
  const int64_t step = block_rows(call.keys), blocks = (call.rows + step - 1) / step;
  const int64_t each = (blocks + call.segments - 1) / call.segments, heads = call.batch * call.heads;
  // Later rows of a causal mask cost more, so the last segments go first. Each writes its own sums: no races, one order.
  parallel(call.threads, heads * call.segments, [&](int64_t item) {
    Work work;
    const int64_t segment = call.segments - 1 - item / heads, b = item % heads / call.heads, h = item % call.heads;
    for (int64_t x = segment * each; x < std::min((segment + 1) * each, blocks); ++x)
      block(call, packed.data(), b, h, x * step, std::min(step, call.rows - x * step), segment, work);
  });
  return 0;
}
