// The gradient of native.cpp: scores of a block of rows are computed again, and weights from the log-sum-exp of the forward
// pass, so nothing of rows times keys is kept between the passes.
//
// With final weights w = edits(p), p = exp(s - lse) (1 - sink) and G = dL/dw, gathered from dz.v and from every statistic,
// G is taken back through the edits to dL/dp, and ds = p (G - D) + dlse p / (1 - sink) with D = sum p G + sink dL/dsink.
// Then dv = w^T dz, dq = scale ds k, dk = scale ds^T q. Gates are applied outside.

#include "native_row.h"

extern "C" {

struct Back {
  const float *dz, *dlse;  // [batch, head, row, dv] or null, [batch, head, row] or null
  const float *dentropy, *dlargest, *ddistance, *dfirst, *dprevious, *dself, *dsink;  // [batch, head, row] or null
  const float *dtopk, *dmass, *dreceived;  // [batch, head, row, k], [set, batch, head, row], [batch, head, key] or null
  float *dq, *dk, *dv, *dsinks;  // written [batch, head, row, d]; added to [segment, batch, kv head, key, d or dv] and
  int64_t segments;              // [segment, batch, head]
};

int64_t back_size() { return sizeof(Back); }
}

namespace {

// out [key, d] += a [row, key]^T b [row, d].
void add_outer(const float* a, int64_t ld, int64_t keys, const float* b, int64_t d, int64_t rows, float* out) {
  int64_t j = 0;
  for (; j + VROWS <= keys; j += VROWS) product_columns<VROWS, true>(a + j, ld, b, d, rows, out + j * d);
  for (; j < keys; ++j) product_columns<1, true>(a + j, ld, b, d, rows, out + j * d);
}

struct Scratch {
  std::vector<float> groups, s, g, slope, kept, dq;
  std::vector<uint8_t> sees;
};

// One row: s holds scores and becomes final weights, g holds dz.v and becomes ds.
struct RowBack : Row {
  const Back& back;
  float *g, *slope;  // slope or null
  Scratch& scratch;
  float dsinks = 0;
  std::vector<float> direct;  // to scores of targets of next to no weight

  RowBack(const Row& row, const Back& back, float* g, float* slope, Scratch& scratch)
      : Row(row), back(back), g(g), slope(slope), scratch(scratch) {}

  float given(const float* x) const { return x ? x[at()] : 0.0f; }
  std::vector<const Edit*> moving() const {
    std::vector<const Edit*> found;
    for (int64_t x = 0; x < call.n_edits; ++x)
      if (const Edit& e = call.edits[x]; moves(e) && touched(e)) found.push_back(&e);
    return found;
  }

  void run(int64_t padded) {
    if (slope) std::fill(slope, slope + n, 1.0f);
    hide(slope);
    std::fill(s + n, s + padded, HIDDEN);
    if (call.n_edits) score_edits(slope);
    lse = call.lse[at()];
    if (lse == -std::numeric_limits<float>::infinity()) {
      std::fill(s, s + padded, 0.0f);
      std::fill(g, g + padded, 0.0f);
      return;
    }
    share_with_sink();
    const std::vector<const Edit*> edits = moving();
    scratch.sees.resize(n);
    if (!edits.empty()) look(scratch.sees);
    softmax_again(padded, edits.empty() ? given(back.dentropy) : 0.0f);
    float dtotal = 0;
    const float* p = s;
    if (edits.empty()) read_off();
    else {
      keep_and_edit(edits, padded);
      p = scratch.kept.data();
      read_off();
      if (back.dentropy) entropy_of_moved();
      for (size_t x = edits.size(); x-- > 0;) dtotal += take_back(*edits[x], scratch.kept.data() + x * padded);
    }
    finish(p, padded, given(back.dsink) - dtotal);
  }

  // p, and what the entropy of unmoved weights adds to G: -(ln p + 1).
  void softmax_again(int64_t padded, float dentropy) {
    remember();
    const vec whole = all(lse), share = all(kept), least = all(-87.0f);
    const vec plus = all(kept > 0 ? std::log(kept) + 1 : 0.0f), minus = all(-dentropy);
    for (int64_t j = 0; j < padded; j += VL) {
      const vec t = load(s + j) - whole;
      store(s + j, exp(t) * share);
      if (dentropy != 0) store(g + j, load(g + j) + minus * (max(t, least) + plus));
    }
  }

  void keep_and_edit(const std::vector<const Edit*>& edits, int64_t padded) {
    scratch.kept.resize(edits.size() * padded);
    factor = 1;
    for (size_t x = 0; x < edits.size(); ++x) {
      std::copy(s, s + padded, scratch.kept.begin() + x * padded);
      if (edits[x]->kind == REDISTRIBUTE) redistribute(*edits[x]);
      else blend(*edits[x], kept, scratch.sees);
    }
  }

  void entropy_of_moved() {
    const float by = given(back.dentropy);
    for (int64_t j = 0; j < n; ++j) g[j] -= s[j] > 0 ? by * (std::log(s[j]) + 1) : 0.0f;
  }

  void one(int64_t key, float by) {
    if (key >= base && key < base + n) g[key - base] += by;
  }

  // What the statistics that are sums of weights add to G.
  void read_off() {
    const int64_t i = call.position[r];
    if (back.dreceived) {
      const float* by = back.dreceived + (b * call.heads + h) * call.keys + base;
      for (int64_t j = 0; j < n; ++j) g[j] += by[j];
    }
    for (int64_t x = 0; back.dmass && x < call.n_sets; ++x) {
      const uint8_t* set = call.sets + (x * call.batch + b) * call.keys + base;
      const float by = back.dmass[x * call.batch * call.heads * call.rows + at()];
      for (int64_t j = 0; j < n; ++j) g[j] += set[j] ? by : 0.0f;
    }
    if (back.ddistance)
      for (int64_t j = 0; j < n; ++j) g[j] += static_cast<float>(given(back.ddistance) * far(j));
    if (back.dfirst) one(call.first_key[b], given(back.dfirst));
    if (back.dprevious) one(i - 1, given(back.dprevious));
    if (back.dself) one(i, given(back.dself));
    if (back.dlargest) one(base + (std::max_element(s, s + n) - s), given(back.dlargest));
    for (int64_t x = 0; back.dtopk && x < call.k_top; ++x)
      one(call.topk_keys[at() * call.k_top + x], back.dtopk[at() * call.k_top + x]);
  }

  // G before one edit from G after it, w its weights before; returns what falls to the whole weight 1 - sink.
  float take_back(const Edit& e, const float* w) {
    const float by = e.value[h];
    if (e.kind == REDISTRIBUTE) { redistribute_back(by, keys(e.keys, e.keys_batch), keys(e.target, e.target_batch), w); return 0; }
    const int64_t own = call.position[r] - base;
    if (e.kind == TO_IDENTITY && (own < 0 || own >= n || !scratch.sees[own])) return 0;
    double seen = 0, total = 0;
    for (int64_t j = 0; j < n; ++j) {
      seen += scratch.sees[j];
      total += e.kind == TO_IDENTITY ? (j == own ? g[j] : 0.0f) : scratch.sees[j] ? g[j] : 0.0f;
      g[j] *= 1 - by;
    }
    return static_cast<float>(by * total / (e.kind == TO_IDENTITY ? 1.0 : seen));
  }

  void redistribute_back(float f, const uint8_t* source, const uint8_t* target, const float* w) {
    double from = 0, to = 0, gain = 0;
    for (int64_t j = 0; j < n; ++j) {
      from += source[j] ? w[j] : 0.0f;
      to += target[j] ? w[j] : 0.0f;
      gain += target[j] ? w[j] * g[j] : 0.0f;
    }
    if (!(to > LEAST * kept)) {
      const std::vector<float> q = shares(target);
      gain = 0;
      for (size_t j = 0; j < q.size(); ++j) gain += q[j] * g[j];
      direct.resize(n);
      for (size_t j = 0; j < q.size(); ++j) {
        direct[j] += static_cast<float>(f * from * q[j] * (g[j] - gain));
        if (source[j]) g[j] = static_cast<float>(g[j] * (1 - f) + f * gain);
      }
      return;
    }
    const float grown = static_cast<float>(1 + f * from / to);
    const float more = static_cast<float>(f * gain / to), less = static_cast<float>(f * gain * from / to / to);
    for (int64_t j = 0; j < n; ++j)
      g[j] = source[j] ? g[j] * (1 - f) + more : target[j] ? g[j] * grown - less : g[j];
  }

  void finish(const float* p, int64_t padded, float dsink) {
    vec total = {};
    for (int64_t j = 0; j < padded; j += VL) total += load(p + j) * load(g + j);
    const float d = sum(total) + sink * dsink, plus = kept > LEAST ? given(back.dlse) / kept : 0.0f;
    const vec shift = all(plus - d);
    for (int64_t j = 0; j < padded; j += VL) store(g + j, call.scale * load(p + j) * (load(g + j) + shift));
    for (size_t j = 0; j < direct.size(); ++j) g[j] += call.scale * direct[j];
    if (slope)
      for (int64_t j = 0; j < n; ++j) g[j] *= slope[j];
    dsinks = sink * (dsink - d);
  }
};

bool sloped(const Call& call) {
  bool found = call.softcap > 0;
  for (int64_t x = 0; x < call.n_edits; ++x) found |= call.edits[x].kind == TEMPERATURE || call.edits[x].kind == EMPHASIZE;
  return found;
}

struct Packed {
  std::vector<float> k, v;
};

void block(const Call& call, const Back& back, const Packed& packed, int64_t b, int64_t h, int64_t r0, int64_t rows,
           int64_t segment, Scratch& w) {
  const int64_t pair = b * call.kv_heads + h / (call.heads / call.kv_heads), panels = (call.keys + PANEL - 1) / PANEL;
  const int64_t first = (b * call.heads + h) * call.rows + r0, out = segment * call.batch * call.kv_heads + pair;
  const Reach of = reach(call, b, r0, rows);
  const int64_t n = of.keys(), ld = of.ld(), from = pair * panels + of.low / PANEL;
  const int64_t size = (rows + QROWS - 1) / QROWS * QROWS * ld + PANEL;
  const float *q = call.q + first * call.d, *dz = back.dz ? back.dz + first * call.dv : nullptr;
  w.s.resize(size);
  all_scores(q, rows, call.d, call.scale, packed.k.data() + from * call.d * PANEL, of.padded(), w.s.data(), ld, w.groups);
  if (dz) {
    w.g.resize(size);
    all_scores(dz, rows, call.dv, 1, packed.v.data() + from * call.dv * PANEL, of.padded(), w.g.data(), ld, w.groups);
  } else w.g.assign(size, 0.0f);
  w.slope.resize(sloped(call) ? n : 0);
  for (int64_t r = 0; r < rows; ++r) {
    const Row plain{call, b, h, r0 + r, of.low, n, w.s.data() + r * ld};
    RowBack row(plain, back, w.g.data() + r * ld, w.slope.empty() ? nullptr : w.slope.data(), w);
    row.run(of.padded());
    if (back.dsinks) back.dsinks[(segment * call.batch + b) * call.heads + h] += row.dsinks;
  }
  std::fill(back.dq + first * call.d, back.dq + (first + rows) * call.d, 0.0f);
  weighted(w.g.data(), ld, rows, call.k + (pair * call.keys + of.low) * call.d, call.d, n, back.dq + first * call.d);
  add_outer(w.g.data(), ld, n, q, call.d, rows, back.dk + (out * call.keys + of.low) * call.d);
  if (dz) add_outer(w.s.data(), ld, n, dz, call.dv, rows, back.dv + (out * call.keys + of.low) * call.dv);
}

}  // namespace

// Heads of one group add to the same keys, so a group is one item of work; its segments have sums of their own.
// Returns what unknown_edit does, and then has done nothing.
extern "C" int64_t gradient(const Call* pointer, const Back* given) {
  const Call& call = *pointer;
  if (const int64_t unknown = unknown_edit(call)) return unknown;
  const Back& back = *given;
  Packed packed{packed_pairs(call, call.k, call.d), {}};
  if (back.dz) packed.v = packed_pairs(call, call.v, call.dv);
  const int64_t step = block_rows(call.keys, 2), blocks = (call.rows + step - 1) / step;
  const int64_t each = (blocks + back.segments - 1) / back.segments, pairs = call.batch * call.kv_heads;
  const int64_t group = call.heads / call.kv_heads;
  parallel(call.threads, pairs * back.segments, [&](int64_t item) {
    Scratch work;
    const int64_t segment = back.segments - 1 - item / pairs, b = item % pairs / call.kv_heads, kv = item % call.kv_heads;
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h)
      for (int64_t x = segment * each; x < std::min((segment + 1) * each, blocks); ++x)
        block(call, back, packed, b, h, x * step, std::min(step, call.rows - x * step), segment, work);
  });
  return 0;
}
