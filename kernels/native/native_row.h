// One row of scores: masked, edited, turned into weights, read off.

#pragma once

#include "native.h"

struct Row {
  const Call& call;
  int64_t b, h, r;   // example, query head, row
  int64_t base;      // first key of the block
  int64_t n;         // keys of the block
  float* s;          // scores, then weights before the factor
  float factor = 0, lse = 0, sink = 0, kept = 1, entropy = 0;
  bool blind = false, moved = false;
  int64_t unmoved = 0;
  std::vector<float> scores;  // before the softmax, where weights are redistributed

  bool touched(const Edit& e) const {
    return (!e.heads || e.heads[h]) && (!e.rows || e.rows[(e.rows_batch ? b * call.rows : 0) + r]);
  }
  static bool moves(const Edit& e) { return e.kind >= REDISTRIBUTE && e.kind <= TO_UNIFORM; }
  const uint8_t* keys(const uint8_t* set, int64_t by_batch) const { return set + (by_batch ? b * call.keys : 0) + base; }
  bool hidden(int64_t j) const { return s[j] <= HIDDEN / 2; }

  // With `slope` given, the derivative by the product q.k is kept in it, here and in score_edits.
  void hide(float* slope = nullptr) {
    const int64_t at = (call.interval_batch ? b * call.rows : 0) + r;
    const int64_t low = std::clamp<int64_t>(call.low[at] - base, 0, n), high = std::clamp<int64_t>(call.high[at] - base, low, n);
    if (call.softcap > 0)
      for (int64_t j = low; j < high; ++j) {
        const float capped = std::tanh(s[j] / call.softcap);
        s[j] = call.softcap * capped;
        if (slope) slope[j] *= 1 - capped * capped;
      }
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

  void score_edits(float* slope = nullptr) {
    for (int64_t x = 0; x < call.n_edits; ++x) {
      const Edit& e = call.edits[x];
      if (e.kind > MASK_KEYS || !touched(e)) continue;
      const float value = e.value ? e.value[h] : 0;
      const uint8_t* set = e.keys ? keys(e.keys, e.keys_batch) : nullptr;
      for (int64_t j = 0; j < n; ++j) {
        if (hidden(j) || (set && !set[j])) continue;
        if (slope && e.kind == TEMPERATURE) slope[j] /= value;
        if (slope && e.kind == EMPHASIZE) slope[j] *= 1 + (s[j] > 0 ? value : s[j] < 0 ? -value : 0.0f);
        if (e.kind == TEMPERATURE) s[j] /= value;
        else if (e.kind == BIAS_KEYS) s[j] += value;
        else if (e.kind == EMPHASIZE) s[j] += value * std::fabs(s[j]);
        else if (e.kind == MASK_KEYS) s[j] = HIDDEN;
      }
    }
  }

  void look(std::vector<uint8_t>& sees) const {
    for (int64_t j = 0; j < n; ++j) sees[j] = !hidden(j);
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
    for (int64_t j = 0; blind && j < n; ++j)
      if (std::isnan(s[j])) blind = false, most = s[j];
    if (blind) {
      std::fill(s, s + padded, 0.0f);
      lse = -std::numeric_limits<float>::infinity();
      sink = call.sinks ? 1.0f : 0.0f;
      kept = 1 - sink;
      return;
    }
    if (call.argmax) {
      while (s[run] != most && run < n - 1) ++run;
      call.argmax[at()] = run + base;
    }
    remember();
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
    share_with_sink();
    factor = kept / l;
    entropy = kept > 0 ? kept * (std::log(l) - std::log(kept)) - factor * sum(weighed) : 0.0f;
  }

  void remember() {
    for (int64_t x = 0; x < call.n_edits; ++x)
      if (call.edits[x].kind == REDISTRIBUTE && touched(call.edits[x])) scores.assign(s, s + n);
  }

  // How a target of next to no weight shares what it is given: by its scores among themselves. Empty: none is visible.
  std::vector<float> shares(const uint8_t* target) const {
    float most = HIDDEN;
    for (int64_t j = 0; j < n; ++j)
      if (target[j]) most = std::max(most, scores[j]);
    if (most <= HIDDEN / 2) return {};
    std::vector<float> found(n);
    float total = 0;
    for (int64_t j = 0; j < n; ++j) total += found[j] = target[j] ? std::exp(scores[j] - most) : 0.0f;
    for (float& x : found) x /= total;
    return found;
  }

  // What the learned sink takes and leaves, each by itself: 1 - sink has no digits where the sink takes nearly all.
  void share_with_sink() {
    if (!call.sinks) return;
    sink = 1.0f / (1.0f + std::exp(lse - call.sinks[h]));
    kept = 1.0f / (1.0f + std::exp(call.sinks[h] - lse));
  }

  int64_t at() const { return (b * call.heads + h) * call.rows + r; }

  void weight_edits(const std::vector<uint8_t>& sees) {
    for (int64_t x = 0; x < call.n_edits; ++x) {
      const Edit& e = call.edits[x];
      if (!moves(e) || !touched(e) || blind) continue;
      if (!moved)
        for (int64_t j = 0; j < n; ++j) s[j] *= factor;
      moved = true;
      factor = 1;
      if (e.kind == REDISTRIBUTE) redistribute(e);
      else blend(e, kept, sees);
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
    const float f = e.value[h], stays = 1 - f;
    if (!(to > LEAST * kept)) {
      const std::vector<float> q = shares(target);
      if (q.empty()) ++unmoved;
      for (size_t j = 0; j < q.size(); ++j) {
        s[j] = source[j] ? s[j] * stays : s[j] + static_cast<float>(f * from) * q[j];
        if (source[j] && stays == 0) scores[j] = HIDDEN;
      }
      return;
    }
    const float grown = static_cast<float>(1 + f * from / to);
    for (int64_t j = 0; j < n; ++j) {
      s[j] *= source[j] ? stays : target[j] ? grown : 1.0f;
      if (source[j] && stays == 0) scores[j] = HIDDEN;
    }
  }

  void blend(const Edit& e, float total, const std::vector<uint8_t>& sees) {
    const float u = e.value[h];
    const int64_t own = call.position[r] - base;
    if (e.kind == TO_IDENTITY && (own < 0 || own >= n || !sees[own])) { ++unmoved; return; }
    int64_t count = 0;
    for (int64_t j = 0; j < n; ++j) count += sees[j];
    for (int64_t j = 0; j < n; ++j) {
      const float ideal = e.kind == TO_IDENTITY ? (j == own) : sees[j] / static_cast<float>(count);
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

  double far(int64_t j) const {
    const int64_t i = call.position[r];
    if (!call.places) return static_cast<double>(std::abs(i - j - base));
    double square = 0;
    for (int64_t a = 0; a < call.axes; ++a) {
      const double x = call.places[i * call.axes + a] - call.places[(j + base) * call.axes + a];
      square += x * x;
    }
    return std::sqrt(square);
  }

  float distance() const {
    double found = 0;
    for (int64_t j = 0; j < n; ++j) found += s[j] * far(j);
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
      if (e.kind != GATE || !touched(e)) continue;
      for (int64_t c = 0; c < call.dv; ++c) z[c] *= e.value[h];
    }
  }
};
