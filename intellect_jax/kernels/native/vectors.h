// Vectors of floats, as wide as the machine's registers, and what the kernels do with them besides adding up products.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace native {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float Unaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec load(const float* at) { return *reinterpret_cast<const Unaligned*>(at); }
inline void store(float* at, Vec x) { *reinterpret_cast<Unaligned*>(at) = x; }
inline Vec all(float x) { return Vec{} + x; }

// exp, within 2 units in the last place; 0 below -87. Cephes' polynomial (Moshier 1992, expf).
inline Vec exp(Vec x) {
  const Vec clamped = x < all(-87.0f) ? all(-87.0f) : (x > all(88.0f) ? all(88.0f) : x);  // NaN stays NaN
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (clamped * 1.44269504088896341f + magic) - magic;
  const Vec r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const IntVec bits = (__builtin_convertvector(n, IntVec) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < all(-87.0f) ? Vec{} : p * scale;
}

inline float sum(Vec x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// NaN if one of them is.
inline Vec larger(Vec a, Vec b) { return (a > b) | (a != a) ? a : b; }

inline float largest(Vec x) {
  float found = x[0];
  for (int i = 1; i < kLanes; ++i) found = x[i] > found || x[i] != x[i] ? x[i] : found;
  return found;
}

// Swaps, between rows i and i + kStep of a square, what a transposition moves by kStep columns.
template <int kStep, int... kLane>
inline void swap_halves(Vec& a, Vec& b, std::integer_sequence<int, kLane...>) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
  const Vec low = __builtin_shuffle(a, b, IntVec{((kLane & kStep) ? kLanes + kLane - kStep : kLane)...});
  b = __builtin_shuffle(a, b, IntVec{((kLane & kStep) ? kLanes + kLane : kLane + kStep)...});
#else
  const Vec low = __builtin_shufflevector(a, b, ((kLane & kStep) ? kLanes + kLane - kStep : kLane)...);
  b = __builtin_shufflevector(a, b, ((kLane & kStep) ? kLanes + kLane : kLane + kStep)...);
#endif
  a = low;
}

template <int kStep>
inline void transpose_by(Vec* rows) {
  for (int i = 0; i < kLanes; ++i)
    if (!(i & kStep)) swap_halves<kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kLanes>());
  if constexpr (kStep > 1) transpose_by<kStep / 2>(rows);
}

// Transposes a square of kLanes rows and columns.
inline void transpose_square(const float* from, ptrdiff_t from_row, float* to, ptrdiff_t to_row) {
  Vec rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = load(from + i * from_row);
  transpose_by<kLanes / 2>(rows);
  for (int i = 0; i < kLanes; ++i) store(to + i * to_row, rows[i]);
}

}  // namespace native
