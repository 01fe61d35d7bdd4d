// Attention over packed rows, and its gradient, in memory linear in their length.
//
// A block of queries sees a range of keys, whose scores exist at once: kQueries times the longest range on each thread.
// attention/chunked.py says what is computed; numbers of heads: h of queries, kv of keys and values, c wide.
#pragma once

#include "gemm.h"
#include "grouped.h"
#include "threads.h"

namespace native {

constexpr int64_t kQueries = 4 * kRows;

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

// Who sees whom: keys of the query's segment, not 0, at its position or before.
struct Sight {
  const Heads& heads;
  std::vector<int32_t> segments, positions;       // [b, padded]
  std::vector<std::pair<int64_t, int64_t>> seen;  // [b, blocks]: first key and the one after the last, whole panels

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

  std::pair<int64_t, int64_t> range(int64_t row, int64_t block) const {
    const int32_t* own = segments.data() + row * heads.padded;
    int64_t first = heads.padded, last = -1;
    const int64_t end = std::min(heads.s, (block + 1) * kQueries);
    // The bounds of the block's segments, and of those the keys that no query comes before.
    int32_t low = std::numeric_limits<int32_t>::max(), high = 0, latest = -1;
    for (int64_t i = block * kQueries; i < end; ++i) {
      if (own[i] <= 0) continue;
      low = std::min(low, own[i]), high = std::max(high, own[i]);
      latest = std::max(latest, positions[row * heads.padded + i]);
    }
    for (int64_t key = 0; key < heads.s; ++key) {
      const bool possible = own[key] >= low && own[key] <= high && positions[row * heads.padded + key] <= latest;
      first = possible ? std::min(first, key) : first;
      last = possible ? key : last;
    }
    if (last < 0) return {0, 0};
    return {first / kColumns * kColumns, (last / kColumns + 1) * kColumns};
  }
};

// [c, padded] of every row and key/value head of x [b, s, kv, c]: what a score's product walks along.
inline std::vector<float> turned(ffi::ThreadPool& pool, const Heads& heads, const float* x) {
  std::vector<float> all(heads.b * heads.kv * heads.c * heads.padded);
  parallel(pool, heads.b * heads.kv, [&](int64_t i) {
    float* out = all.data() + i * heads.c * heads.padded;
    transpose(heads.of(x, heads.kv, i / heads.kv, i % heads.kv), heads.s, heads.c, out, heads.padded);
  });
  return all;
}

inline ffi::Error attention(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Integers segment_ids,
                            Integers position_ids, ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::F32> lse) {
  const Heads heads(q, k);
  const Sight sight(pool, heads, segment_ids.typed_data(), position_ids.typed_data());
  const std::vector<float> keys = turned(pool, heads, k.typed_data());
  const float scale = 1.0f / std::sqrt(static_cast<float>(heads.c));
  parallel(pool, heads.b * heads.h * heads.blocks(), [&](int64_t task) {
    const int64_t block = task % heads.blocks(), head = task / heads.blocks() % heads.h;
    const int64_t row = task / heads.blocks() / heads.h, kv = head / (heads.h / heads.kv);
    const int64_t start = block * kQueries, some = std::min(kQueries, heads.s - start);
    const auto [first, end] = sight.seen[row * heads.blocks() + block];
    const int64_t n = end - first;
    float* scores = scratch<1>(kQueries * heads.padded);
    const Matrix columns{keys.data() + (row * heads.kv + kv) * heads.c * heads.padded, heads.padded, 1};
    multiply(heads.of(q.typed_data(), heads.h, row, head).from(start, 0), columns.from(0, first), some, n, heads.c,
             scores, n, false);
    for (int64_t i = 0; i < some; ++i) {
      float* own = scores + i * n;
      Vec peaks = all(-std::numeric_limits<float>::infinity());
      for (int64_t j = 0; j < n; j += kLanes) {
        const Vec score = sight.sees(row, start + i, first + j) ? load(own + j) * scale
                                                                 : all(-std::numeric_limits<float>::infinity());
        store(own + j, score);
        peaks = larger(peaks, score);
      }
      const float peak = n ? largest(peaks) : 0;
      const bool blind = n == 0 || peak == -std::numeric_limits<float>::infinity();
      Vec masses{};
      for (int64_t j = 0; j < n; j += kLanes) {
        const Vec weight = blind ? Vec{} : exp(load(own + j) - peak);
        store(own + j, weight);
        masses += weight;
      }
      const float mass = sum(masses), inverse = blind ? 0 : 1 / mass;
      for (int64_t j = 0; j < n; j += kLanes) store(own + j, load(own + j) * inverse);
      lse->typed_data()[(row * heads.s + start + i) * heads.h + head] =
          blind ? -std::numeric_limits<float>::infinity() : peak + std::log(mass);
    }
    float* to = out->typed_data() + ((row * heads.s + start) * heads.h + head) * heads.c;
    multiply({scores, n, 1}, heads.of(v.typed_data(), heads.kv, row, kv).from(first, 0), some, heads.c,
             std::min(end, heads.s) - first, to, heads.h * heads.c, false);
  });
  return ffi::Error::Success();
}

inline ffi::Error attention_gradient(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Integers segment_ids,
                                     Integers position_ids, Floats out, Floats lse, Floats d_out,
                                     ffi::ResultBuffer<ffi::F32> d_q, ffi::ResultBuffer<ffi::F32> d_k,
                                     ffi::ResultBuffer<ffi::F32> d_v) {
  const Heads heads(q, k);
  const Sight sight(pool, heads, segment_ids.typed_data(), position_ids.typed_data());
  const std::vector<float> keys = turned(pool, heads, k.typed_data()), values = turned(pool, heads, v.typed_data());
  const float scale = 1.0f / std::sqrt(static_cast<float>(heads.c));
  const int64_t each = heads.s * heads.c, shared = heads.h / heads.kv;
  float* partial = scratch<3>(2 * heads.b * heads.h * each);  // of every query head: dk, dv
  parallel(pool, heads.b * heads.h, [&](int64_t task) {
    const int64_t row = task / heads.h, head = task % heads.h, kv = head / shared;
    float *dk = partial + 2 * task * each, *dv = dk + each;
    std::fill_n(dk, 2 * each, 0.0f);
    const Matrix queries = heads.of(q.typed_data(), heads.h, row, head);
    const Matrix gradients = heads.of(d_out.typed_data(), heads.h, row, head);
    const Matrix outputs = heads.of(out.typed_data(), heads.h, row, head);
    const Matrix key_rows = heads.of(k.typed_data(), heads.kv, row, kv);
    const int64_t offset = (row * heads.kv + kv) * heads.c * heads.padded;
    const Matrix key_columns{keys.data() + offset, heads.padded, 1};
    const Matrix value_columns{values.data() + offset, heads.padded, 1};
    float *p = scratch<1>(kQueries * heads.padded), *ds = scratch<2>(kQueries * heads.padded);
    for (int64_t block = 0; block < heads.blocks(); ++block) {
      const int64_t start = block * kQueries, some = std::min(kQueries, heads.s - start);
      const auto [first, end] = sight.seen[row * heads.blocks() + block];
      const int64_t n = end - first, real = std::min(end, heads.s) - first;
      multiply(queries.from(start, 0), key_columns.from(0, first), some, n, heads.c, p, n, false);
      multiply(gradients.from(start, 0), value_columns.from(0, first), some, n, heads.c, ds, n, false);
      for (int64_t i = 0; i < some; ++i) {
        const float known = lse.typed_data()[(row * heads.s + start + i) * heads.h + head];
        const float shift = std::isinf(known) ? 0 : known;
        float delta = 0;
        for (int64_t j = 0; j < heads.c; ++j)
          delta += gradients.from(start + i, j).at[0] * outputs.from(start + i, j).at[0];
        for (int64_t j = i * n; j < (i + 1) * n; j += kLanes) {
          const Vec weight = exp(load(p + j) * scale - shift);
          const Vec own = sight.sees(row, start + i, first + j - i * n) ? weight : Vec{};
          store(p + j, own);
          store(ds + j, own * (load(ds + j) - delta) * scale);
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
