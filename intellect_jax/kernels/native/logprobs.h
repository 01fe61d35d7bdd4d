// Log-probabilities and entropies of given tokens from hidden states and the head's kernel, and their gradients.
//
// Logits exist for a few tokens times kColumnsOfChunk columns on each thread. logprobs/chunked.py says what is
// computed and whence; here every thread takes chunks of the vocabulary, whose sums are put together at the end.
#pragma once

#include "gemm.h"
#include "grouped.h"
#include "threads.h"

namespace native {

constexpr int64_t kColumnsOfChunk = 256;
constexpr int64_t kTokensOfPass = kFew, kTokensOfGradient = 4 * kFew;  // a cache's worth; enough to add up
constexpr int64_t kBytesOfSums = 1 << 26;  // of all threads' gradients to hidden states

// The tokens that count, one after the other, and the order in which their features are added up: the few that are large
// come last, so that nothing small is rounded to the last bit of a sum with them (head_logits in logprobs/chunked.py).
struct Members {
  static constexpr int64_t kLarge = 16;

  std::vector<int64_t> which, features;
  std::vector<float> hidden;  // [members, d], features in that order
  int64_t d, small;           // of the features, how many are small

  Members(const float* all_hidden, const bool* member, int64_t tokens, int64_t d)
      : features(d), d(d), small(d - std::min(kLarge, d / 4)) {
    for (int64_t t = 0; t < tokens; ++t)
      if (member[t]) which.push_back(t);
    std::vector<float> size(d);  // sums over members
    for (int64_t t : which)
      for (int64_t i = 0; i < d; ++i) size[i] += std::abs(all_hidden[t * d + i]);
    for (int64_t i = 0; i < d; ++i) features[i] = i, size[i] = std::isnan(size[i]) ? HUGE_VALF : size[i];
    std::stable_sort(features.begin(), features.end(), [&](int64_t a, int64_t b) { return size[a] < size[b]; });
    std::sort(features.begin(), features.begin() + small);
    hidden.resize(which.size() * d);
    float* to = hidden.data();
    for (int64_t t : which)
      for (int64_t i : features) *to++ = all_hidden[t * d + i];
  }

  int64_t count() const { return which.size(); }
  Matrix rows(int64_t first) const { return {hidden.data() + first * d, d, 1}; }
};

// Columns of the kernel [d, v], copied as panels [d, kColumns] that lie one after the other, features in their order.
struct Chunk {
  int64_t start, width, d;
  float* panels;

  Chunk(const float* kernel, const Members& members, int64_t v, int64_t number, float* memory)
      : start(number * kColumnsOfChunk), width(std::min(kColumnsOfChunk, v - start)), d(members.d), panels(memory) {
    each_stretch(width, kColumns, [&](int64_t left, int64_t some) {
      for (int64_t i = 0; i < d; ++i) {
        float* row = panel(left) + i * kColumns;
        std::copy_n(kernel + members.features[i] * v + start + left, some, row);
        std::fill(row + some, row + kColumns, 0.0f);
      }
    });
  }

  float* panel(int64_t left) const { return panels + left * d; }

  // Over the temperature, of some members; rounded here, so that forward and backward pass see the same numbers.
  void logits(const Members& members, int64_t first, int64_t some, const float* temperature, float* z) const {
    each_stretch(width, kColumns, [&](int64_t left, int64_t columns) {
      const Matrix panel_of{panel(left), kColumns, 1};
      each_stretch(some, kFew, [&](int64_t top, int64_t rows) {  // so few that the panel is used where it lies
        const Matrix hidden = members.rows(first + top);
        float* to = z + top * width + left;
        multiply(hidden, panel_of, rows, columns, members.small, to, width, false);
        multiply(hidden.from(0, members.small), panel_of.from(members.small, 0), rows, columns, d - members.small, to,
                 width, true);
      });
    });
    for (int64_t i = 0; i < some; ++i) {
      const float inverse = 1.0f / temperature[members.which[first + i]];
      for (int64_t j = 0; inverse != 1.0f && j < width; ++j) z[i * width + j] *= inverse;
    }
  }
};

// exp(z - shift) of each of n numbers z: calls with (index, z - shift, exp) for vectors, and for what is left with
// numbers past the end that count as -inf.
template <typename Each>
inline void each_vector(const float* z, int64_t n, const Each& each) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) each(i, load(z + i), kLanes);
  if (i == n) return;
  float rest[kLanes];
  std::fill_n(rest, kLanes, -std::numeric_limits<float>::infinity());
  std::copy(z + i, z + n, rest);
  each(i, load(rest), static_cast<int>(n - i));
}

constexpr float kLow = -1e30f;  // no peak is below: differences are finite

// Sums over columns; z is a logit over the temperature.
struct Sums {
  float peak, mass, moment;  // max z, sum exp(z - peak), sum exp(z - peak) (z - peak)
};

inline Sums sums_of(const float* z, int64_t n) {
  Vec peaks = all(-std::numeric_limits<float>::infinity());
  each_vector(z, n, [&](int64_t, Vec x, int) { peaks = larger(peaks, x); });
  const float peak = std::max(largest(peaks), kLow);
  Vec mass{}, moment{};
  each_vector(z, n, [&](int64_t, Vec x, int) {
    const Vec centred = x - peak, weight = exp(centred);
    mass += weight;
    moment += weight * (centred < all(-87.0f) ? Vec{} : centred);
  });
  return {peak, sum(mass), sum(moment)};
}

// Of n parts that lie `step` apart, over all of their columns.
inline Sums together(const Sums* parts, int64_t n, int64_t step) {
  Sums whole{parts[0].peak, 0, 0};
  for (int64_t i = 1; i < n; ++i) whole.peak = std::max(whole.peak, parts[i * step].peak);
  for (int64_t i = 0; i < n; ++i) {
    const Sums& part = parts[i * step];
    const float shift = part.peak - whole.peak, scale = std::exp(shift);
    whole.mass += scale * part.mass;
    whole.moment += scale * (part.moment + shift * part.mass);
  }
  return whole;
}

inline ffi::Error logprobs(ffi::ThreadPool pool, Floats hidden, Floats kernel, Integers targets, Floats temperature,
                           ffi::Buffer<ffi::PRED> member, ffi::ResultBuffer<ffi::F32> logprob,
                           ffi::ResultBuffer<ffi::F32> entropy, ffi::ResultBuffer<ffi::F32> logsumexp) {
  const int64_t d = kernel.dimensions()[0], v = kernel.dimensions()[1], tokens = targets.element_count();
  const Members members(hidden.typed_data(), member.typed_data(), tokens, d);
  const int64_t count = members.count(), chunks = (v + kColumnsOfChunk - 1) / kColumnsOfChunk;
  std::vector<Sums> sums(chunks * count);
  for (auto* out : {&logprob, &entropy, &logsumexp}) std::fill_n((*out)->typed_data(), tokens, 0.0f);
  parallel(pool, chunks, [&](int64_t number) {
    const Chunk chunk(kernel.typed_data(), members, v, number, scratch<0>(d * kColumnsOfChunk));
    float* z = scratch<1>(kTokensOfPass * kColumnsOfChunk);
    each_stretch(count, kTokensOfPass, [&](int64_t first, int64_t some) {
      chunk.logits(members, first, some, temperature.typed_data(), z);
      for (int64_t i = 0; i < some; ++i) {
        const int64_t t = members.which[first + i], target = targets.typed_data()[t] - chunk.start;
        const float* own = z + i * chunk.width;
        sums[number * count + first + i] = sums_of(own, chunk.width);
        if (0 <= target && target < chunk.width) logprob->typed_data()[t] = own[target];
      }
    });
  });
  parallel(pool, (count + kTokensOfGradient - 1) / kTokensOfGradient, [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * kTokensOfGradient);
    for (int64_t i = task * kTokensOfGradient; i < end; ++i) {
      const Sums whole = together(&sums[i], chunks, count);
      const int64_t t = members.which[i];
      const float log_mass = std::log(whole.mass);
      logprob->typed_data()[t] -= whole.peak + log_mass;
      entropy->typed_data()[t] = log_mass - whole.moment / whole.mass;
      logsumexp->typed_data()[t] = whole.peak + log_mass;
    }
  });
  return ffi::Error::Success();
}

// What the gradient knows of the tokens: arrays [tokens].
struct Given {
  const int32_t* target;
  const float *temperature, *entropy, *logsumexp, *d_logprob, *d_entropy;

  // Token t's logits of a chunk become their gradients. Of the logprob log p_y: 1[v = y] - p_v; of the entropy H:
  // -p_v (log p_v + H); both over the temperature.
  void to_gradient(int64_t t, const Chunk& chunk, float* z) const {
    const float inverse = 1.0f / temperature[t], slope = d_logprob[t] + d_entropy[t] * entropy[t];
    each_vector(z, chunk.width, [&](int64_t i, Vec x, int some) {
      const Vec log_p = x - logsumexp[t];
      const Vec spread = exp(log_p) * (slope + d_entropy[t] * log_p) * -inverse;
      if (some == kLanes) return store(z + i, spread);
      for (int j = 0; j < some; ++j) z[i + j] = spread[j];
    });
    const int64_t own = target[t] - chunk.start;
    if (0 <= own && own < chunk.width) z[own] += d_logprob[t] * inverse;
  }
};

// Adds what a chunk gives to some members' hidden states [length, d], and to its own columns [d, width].
inline void add_gradients(const Chunk& chunk, const Members& members, const Given& given, int64_t begin, int64_t length,
                          float* turned, float* d_hidden, float* d_columns) {
  const int64_t d = chunk.d, width = chunk.width;
  each_stretch(width, kColumns, [&](int64_t left, int64_t some) {
    transpose({chunk.panel(left), kColumns, 1}, d, some, turned + left * d, d);
  });
  float* z = scratch<1>(kTokensOfGradient * kColumnsOfChunk);
  each_stretch(length, kTokensOfGradient, [&](int64_t first, int64_t some) {
    chunk.logits(members, begin + first, some, given.temperature, z);
    for (int64_t i = 0; i < some; ++i) given.to_gradient(members.which[begin + first + i], chunk, z + i * width);
    const Matrix d_logits{z, width, 1};
    multiply(d_logits, {turned, d, 1}, some, d, width, d_hidden + first * d, d, true);
    multiply({members.rows(begin + first).at, 1, d}, d_logits, d, width, some, d_columns, width, true);
  });
}

inline ffi::Error logprobs_gradient(ffi::ThreadPool pool, Floats hidden, Floats kernel, Integers targets,
                                    Floats temperature, ffi::Buffer<ffi::PRED> member, Floats entropy,
                                    Floats logsumexp, Floats d_logprob, Floats d_entropy,
                                    ffi::ResultBuffer<ffi::F32> d_hidden, ffi::ResultBuffer<ffi::F32> d_kernel) {
  const int64_t d = kernel.dimensions()[0], v = kernel.dimensions()[1], tokens = targets.element_count();
  const Members members(hidden.typed_data(), member.typed_data(), tokens, d);
  const Given given{targets.typed_data(), temperature.typed_data(), entropy.typed_data(), logsumexp.typed_data(),
                    d_logprob.typed_data(), d_entropy.typed_data()};
  const int64_t count = members.count(), chunks = (v + kColumnsOfChunk - 1) / kColumnsOfChunk;
  // A share of the chunks each, and sums of its own: what is added to what does not depend on who is fast. Those exist
  // for a slab of members at a time, as there may be many threads.
  const int64_t shares = std::max<int64_t>(1, std::min(pool.num_threads(), chunks));
  const int64_t blocks = std::max<int64_t>(1, kBytesOfSums / 4 / (shares * d * kTokensOfGradient));
  const int64_t slab = std::min(count, blocks * kTokensOfGradient);
  const auto partial = fresh(shares * slab * d);
  std::fill_n(d_hidden->typed_data(), tokens * d, 0.0f);
  std::fill_n(d_kernel->typed_data(), count ? 0 : d * v, 0.0f);
  each_stretch(count, slab, [&](int64_t begin, int64_t length) {
    parallel(pool, shares, [&](int64_t share) {
      float* own = partial.get() + share * slab * d;
      std::fill_n(own, length * d, 0.0f);
      float* memory = scratch<0>(3 * d * kColumnsOfChunk);
      float *turned = memory + d * kColumnsOfChunk, *d_columns = turned + d * kColumnsOfChunk;
      for (int64_t number = share; number < chunks; number += shares) {
        const Chunk chunk(kernel.typed_data(), members, v, number, memory);
        const auto to = [&](int64_t i) { return d_kernel->typed_data() + members.features[i] * v + chunk.start; };
        std::fill_n(d_columns, d * chunk.width, 0.0f);
        for (int64_t i = 0; begin && i < d; ++i) std::copy_n(to(i), chunk.width, d_columns + i * chunk.width);
        add_gradients(chunk, members, given, begin, length, turned, own, d_columns);
        for (int64_t i = 0; i < d; ++i) std::copy_n(d_columns + i * chunk.width, chunk.width, to(i));
      }
    });
    parallel(pool, shares, [&](int64_t share) {
      for (int64_t i = length * share / shares; i < length * (share + 1) / shares; ++i) {
        float* out = d_hidden->typed_data() + members.which[begin + i] * d;
        for (int64_t from = 0; from < shares; ++from)
          for (int64_t j = 0; j < d; ++j) out[members.features[j]] += partial[(from * slab + i) * d + j];
      }
    });
  });
  return ffi::Error::Success();
}

}  // namespace native
