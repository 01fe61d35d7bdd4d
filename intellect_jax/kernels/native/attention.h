// Attention over packed rows, and its gradient, in memory linear in their length.
//
// A block of queries sees a range of keys, whose scores exist at once: kQueries times the longest range on each thread.
// attention/chunked.py says what is computed; numbers of heads: h of queries, kv of keys and values, c wide.
#pragma once

#include "gemm.h"
#include "grouped.h"
#include "threads.h"

namespace native {

constexpr int64_t kQueries = kFew;

struct Heads {
  int64_t b, s, h, kv, c;
  int64_t padded;  // s in whole panels

  Heads(const Floats& q, const Floats& k)
      : b(q.dimensions()[0]), s(q.dimensions()[1]), h(q.dimensions()[2]), kv(k.dimensions()[2]), c(q.dimensions()[3]),
        padded((s + kColumns - 1) / kColumns * kColumns) {}

  int64_t blocks() const { return (s + kQueries - 1) / kQueries; }
  // Tokens [s, c] of a row and a head of an array [b, s, heads, c].
  Matrix of(const float* x, int64_t heads, int64_t row, int64_t head) const {
    return {x + (row * s * heads + head) * c, heads * c, 1};
  }
};

// Keys that a block of queries sees: none before `first` or from `end` on, whole panels; before `clear` all see all.
struct Range {
  int64_t first, clear, end;
};

// Who sees whom: keys of the query's segment, not 0, at its position or before.
struct Sight {
  const Heads& heads;
  std::vector<int32_t> segments, positions;  // [b, padded]
  std::vector<Range> seen;                  // [b, blocks]

  Sight(ffi::ThreadPool& pool, const Heads& heads, const int32_t* segment_ids, const int32_t* position_ids)
      : heads(heads), segments(heads.b * heads.padded), positions(segments.size()), seen(heads.b * heads.blocks()) {
    for (int64_t row = 0; row < heads.b; ++row) {
      std::copy_n(segment_ids + row * heads.s, heads.s, segments.data() + row * heads.padded);
      std::copy_n(position_ids + row * heads.s, heads.s, positions.data() + row * heads.padded);
    }
    parallel(pool, seen.size(), [&](int64_t i) { seen[i] = range(i / heads.blocks(), i % heads.blocks()); });
  }

  IntVec sees(int64_t row, int64_t query, int64_t key) const {
    const int32_t segment = segments[row * heads.padded + query], position = positions[row * heads.padded + query];
    IntVec segment_of, position_of;
    std::memcpy(&segment_of, &segments[row * heads.padded + key], sizeof segment_of);
    std::memcpy(&position_of, &positions[row * heads.padded + key], sizeof position_of);
    return (segment_of == segment) & (position_of <= position) & (segment_of > 0);
  }

  Range range(int64_t row, int64_t block) const {
    const int32_t *segment = segments.data() + row * heads.padded, *position = positions.data() + row * heads.padded;
    // The bounds of the block's segments and positions, padding apart.
    int32_t low = std::numeric_limits<int32_t>::max(), high = 0, earliest = low, latest = -1;
    bool padding = false;
    for (int64_t i = block * kQueries; i < std::min(heads.s, (block + 1) * kQueries); ++i) {
      padding |= segment[i] <= 0;
      if (segment[i] <= 0) continue;
      low = std::min(low, segment[i]), high = std::max(high, segment[i]);
      earliest = std::min(earliest, position[i]), latest = std::max(latest, position[i]);
    }
    int64_t first = heads.padded, last = -1;
    for (int64_t key = 0; key < heads.s; ++key) {
      const bool possible = segment[key] >= low && segment[key] <= high && position[key] <= latest;
      first = possible ? std::min(first, key) : first;
      last = possible ? key : last;
    }
    if (last < 0) return {0, 0, 0};
    first = first / kNarrowColumns * kNarrowColumns;
    int64_t clear = first;
    while (!padding && low == high && clear < heads.s && segment[clear] == low && position[clear] <= earliest) ++clear;
    return {first, first + (clear - first) / kLanes * kLanes, (last / kNarrowColumns + 1) * kNarrowColumns};
  }
};

// [c, padded] of every row and key/value head of x [b, s, kv, c]: what a score's product walks along. Zeros after s.
inline std::unique_ptr<float[]> turned(ffi::ThreadPool& pool, const Heads& heads, const float* x) {
  auto all = fresh(heads.b * heads.kv * heads.c * heads.padded);
  parallel(pool, heads.b * heads.kv, [&](int64_t i) {
    float* out = all.get() + i * heads.c * heads.padded;
    transpose(heads.of(x, heads.kv, i / heads.kv, i % heads.kv), heads.s, heads.c, out, heads.padded);
    for (int64_t j = 0; j < heads.c; ++j, out += heads.padded) std::fill(out + heads.s, out + heads.padded, 0.0f);
  });
  return all;
}

inline ffi::Error attention(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Integers segment_ids,
                            Integers position_ids, ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::F32> lse) {
  const Heads heads(q, k);
  const Sight sight(pool, heads, segment_ids.typed_data(), position_ids.typed_data());
  const auto keys = turned(pool, heads, k.typed_data());
  const float scale = 1.0f / std::sqrt(static_cast<float>(heads.c));
  const Vec nothing = all(-std::numeric_limits<float>::infinity());
  parallel(pool, heads.b * heads.h * heads.blocks(), [&](int64_t task) {
    const int64_t block = task % heads.blocks(), head = task / heads.blocks() % heads.h;
    const int64_t row = task / heads.blocks() / heads.h, kv = head / (heads.h / heads.kv);
    const int64_t start = block * kQueries, some = std::min(kQueries, heads.s - start);
    const auto [first, clear, end] = sight.seen[row * heads.blocks() + block];
    const int64_t n = end - first;
    float* scores = scratch<1>(kQueries * heads.padded);
    const Matrix columns{keys.get() + (row * heads.kv + kv) * heads.c * heads.padded, heads.padded, 1};
    multiply(heads.of(q.typed_data(), heads.h, row, head).from(start, 0), columns.from(0, first), some, n, heads.c,
             scores, n, false);
    float inverses[kQueries];
    for (int64_t i = 0; i < some; ++i) {
      float* own = scores + i * n;
      Vec peaks = nothing;
      for (int64_t j = 0; j < clear - first; j += kLanes) peaks = larger(peaks, load(own + j));
      for (int64_t j = clear - first; j < n; j += kLanes) {
        const Vec score = sight.sees(row, start + i, first + j) ? load(own + j) : nothing;
        store(own + j, score);
        peaks = larger(peaks, score);
      }
      const float peak = largest(peaks);
      const bool blind = peak == nothing[0];
      Vec masses{};
      for (int64_t j = 0; j < n; j += kLanes) {
        const Vec weight = blind ? Vec{} : exp((load(own + j) - peak) * scale);
        store(own + j, weight);
        masses += weight;
      }
      const float mass = sum(masses);
      inverses[i] = blind ? 0 : 1 / mass;
      lse->typed_data()[(row * heads.s + start + i) * heads.h + head] = blind ? peak : peak * scale + std::log(mass);
    }
    float* to = out->typed_data() + ((row * heads.s + start) * heads.h + head) * heads.c;
    multiply({scores, n, 1}, heads.of(v.typed_data(), heads.kv, row, kv).from(first, 0), some, heads.c,
             std::min(end, heads.s) - first, to, heads.h * heads.c, false);
    for (int64_t i = 0; i < some; ++i, to += heads.h * heads.c)
      for (int64_t j = 0; j < heads.c; ++j) to[j] *= inverses[i];
  });
  return ffi::Error::Success();
}

inline ffi::Error attention_gradient(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Integers segment_ids,
                                     Integers position_ids, Floats out, Floats lse, Floats d_out,
                                     ffi::ResultBuffer<ffi::F32> d_q, ffi::ResultBuffer<ffi::F32> d_k,
                                     ffi::ResultBuffer<ffi::F32> d_v) {
  const Heads heads(q, k);
  const Sight sight(pool, heads, segment_ids.typed_data(), position_ids.typed_data());
  const auto keys = turned(pool, heads, k.typed_data()), values = turned(pool, heads, v.typed_data());
  const float scale = 1.0f / std::sqrt(static_cast<float>(heads.c));
  const int64_t each = heads.s * heads.c, shared = heads.h / heads.kv;
  const auto partial = fresh(2 * heads.b * heads.h * each);  // of every query head: dk, dv
  parallel(pool, heads.b * heads.h, [&](int64_t task) {
    const int64_t row = task / heads.h, head = task % heads.h, kv = head / shared;
    float *dk = partial.get() + 2 * task * each, *dv = dk + each;
    std::fill_n(dk, 2 * each, 0.0f);
    const Matrix queries = heads.of(q.typed_data(), heads.h, row, head);
    const Matrix gradients = heads.of(d_out.typed_data(), heads.h, row, head);
    const Matrix outputs = heads.of(out.typed_data(), heads.h, row, head);
    const Matrix key_rows = heads.of(k.typed_data(), heads.kv, row, kv);
    const int64_t offset = (row * heads.kv + kv) * heads.c * heads.padded;
    const Matrix key_columns{keys.get() + offset, heads.padded, 1};
    const Matrix value_columns{values.get() + offset, heads.padded, 1};
    float *p = scratch<1>(kQueries * heads.padded), *ds = scratch<2>(kQueries * heads.padded);
    for (int64_t block = 0; block < heads.blocks(); ++block) {
      const int64_t start = block * kQueries, some = std::min(kQueries, heads.s - start);
      const auto [first, clear, end] = sight.seen[row * heads.blocks() + block];
      const int64_t n = end - first, real = std::min(end, heads.s) - first;
      multiply(queries.from(start, 0), key_columns.from(0, first), some, n, heads.c, p, n, false);
      multiply(gradients.from(start, 0), value_columns.from(0, first), some, n, heads.c, ds, n, false);
      for (int64_t i = 0; i < some; ++i) {
        const float known = lse.typed_data()[(row * heads.s + start + i) * heads.h + head];
        const float shift = std::isinf(known) ? 0 : known;
        float delta = 0;
        for (int64_t j = 0; j < heads.c; ++j)
          delta += gradients.from(start + i, j).at[0] * outputs.from(start + i, j).at[0];
        float *own = p + i * n, *d_own = ds + i * n;
        for (int64_t j = 0; j < n; j += kLanes) {
          Vec weight = exp(load(own + j) * scale - shift);
          if (first + j >= clear) weight = sight.sees(row, start + i, first + j) ? weight : Vec{};
          store(own + j, weight);
          store(d_own + j, weight * (load(d_own + j) - delta) * scale);
        }
      }
      multiply({p, 1, n}, gradients.from(start, 0), real, heads.c, some, dv + first * heads.c, heads.c, true);
      multiply({ds, 1, n}, queries.from(start, 0), real, heads.c, some, dk + first * heads.c, heads.c, true);
      float* to = d_q->typed_data() + ((row * heads.s + start) * heads.h + head) * heads.c;
      multiply({ds, n, 1}, key_rows.from(first, 0), some, heads.c, real, to, heads.h * heads.c, false);
    }
  });
  parallel(pool, heads.b * heads.kv, [&](int64_t task) {
    const int64_t row = task / heads.kv, kv = task % heads.kv;
    float* outs[] = {d_k->typed_data(), d_v->typed_data()};
    for (int which = 0; which < 2; ++which)
      for (int64_t t = 0; t < heads.s; ++t) {
        float* to = outs[which] + ((row * heads.s + t) * heads.kv + kv) * heads.c;
        std::fill_n(to, heads.c, 0.0f);
        for (int64_t head = kv * shared; head < (kv + 1) * shared; ++head)
          for (int64_t j = 0; j < heads.c; ++j) to[j] += partial[(2 * (row * heads.h + head) + which) * each + t * heads.c + j];
      }
  });
  return ffi::Error::Success();
}

}  // namespace native
