// C = A B or C += A B in float32, for one thread.
//
// B is cut into panels as wide as a register tile of outputs, which walks down them; A is read where it lies, by rows or
// by columns. Each output is the sum of shorter sums of kTerms products, which rounds less than one long sum
// (products.py says why that matters).
//
// Tiles are wide and low: a row's number, once in a register, meets kWide vectors. On cores whose caches are busy with
// somebody else's work 6 x 64 took a sixth less time than 12 x 32, and as much on idle ones.
#pragma once

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace native {

#if defined(__AVX512F__)
constexpr int kWide = 4, kRegisters = 24;  // vectors in a row of a tile, in all of it
#elif defined(__AVX__)
constexpr int kWide = 2, kRegisters = 12;
#else
constexpr int kWide = 2, kRegisters = 8;
#endif
constexpr int kNarrow = 2;  // vectors in a row, for the last columns
constexpr int kColumns = kWide * kLanes, kNarrowColumns = kNarrow * kLanes;
constexpr int kTerms = 128;
constexpr int kFew = 48;  // rows of a block whose results lie in a cache; whole tiles
constexpr int kInPlace = 72;  // rows of A for which copying a panel does not pay

// A matrix in memory: element (i, j) is at[i * row + j * column].
struct Matrix {
  const float* at;
  ptrdiff_t row;
  ptrdiff_t column;

  Matrix from(ptrdiff_t i, ptrdiff_t j) const { return {at + i * row + j * column, row, column}; }
};

// Part of B: its rows are `step` floats apart, all of a tile's width readable.
struct Panel {
  const float* at;
  ptrdiff_t step;
};

// Rows of C that are `row` floats apart; of a tile's columns there are n.
struct Output {
  float* at;
  ptrdiff_t row;
  int n;
  bool add;
};

// Asks for the lines of A that the tile below will read, one at each step: experts' rows are read once and far apart.
template <int kM, bool kByRows>
class Ahead {
 public:
  explicit Ahead(Matrix a) : line_(a.at + (kByRows ? kM * a.row : kLanes)), row_(kByRows ? a.row : a.column) {}

  void step() {
    __builtin_prefetch(line_);
    line_ += row_;
    if (kByRows && ++rows_ == kM) rows_ = 0, line_ += kLanes - kM * row_;
  }

 private:
  const float* line_;
  ptrdiff_t row_;
  int rows_ = 0;
};

// kM rows of C. The sums stay in registers as long as all of their indices are constants: hence the unrolling.
template <int kV, int kM, bool kByRows>
inline void tile(Matrix a, Panel b, int terms, Output c) {
  Vec sums[kM][kV] = {};
  const float* at = a.at;
  const ptrdiff_t row = kByRows ? a.row : 1, next = kByRows ? 1 : a.column;
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i)
    for (int v = 0; v < kV; ++v) __builtin_prefetch(c.at + i * c.row + v * kLanes, 1);
  Ahead<kM, kByRows> ahead(a);
#pragma GCC unroll 4
  for (int k = 0; k < terms; ++k, b.at += b.step, at += next) {
    Vec right[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) right[v] = load(b.at + v * kLanes);
    ahead.step();
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      const float x = at[i * row];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sums[i][v] += x * right[v];
    }
  }
  if (c.n == kV * kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        float* out = c.at + i * c.row + v * kLanes;
        store(out, c.add ? load(out) + sums[i][v] : sums[i][v]);
      }
    }
    return;
  }
  float whole[kM][kV * kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) store(whole[i] + v * kLanes, sums[i][v]);
  for (int i = 0; i < kM; ++i)
    for (int j = 0; j < c.n; ++j) c.at[i * c.row + j] = (c.add ? c.at[i * c.row + j] : 0.0f) + whole[i][j];
}

template <int kV, bool kByRows, int kM = kRegisters / kV>
inline void tile_of(int m, Matrix a, Panel b, int terms, Output c) {
  if constexpr (kM > 1) {
    if (m < kM) return tile_of<kV, kByRows, kM - 1>(m, a, b, terms, c);
  }
  tile<kV, kM, kByRows>(a, b, terms, c);
}

// out [columns, rows], whose rows lie out_row floats apart, of a matrix whose columns have unit stride.
inline void transpose(Matrix x, int64_t rows, int64_t columns, float* out, ptrdiff_t out_row) {
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes) {
      if (i + kLanes <= rows && j + kLanes <= columns) {
        transpose_square(x.from(i, j).at, x.row, out + j * out_row + i, out_row);
        continue;
      }
      for (int64_t at = i; at < std::min<int64_t>(rows, i + kLanes); ++at)
        for (int64_t to = j; to < std::min<int64_t>(columns, j + kLanes); ++to) out[to * out_row + at] = *x.from(at, to).at;
    }
}

// A panel of B, `terms` x n, as rows of kV vectors; zeros past n. Asks for the next one to the right.
template <int kV>
inline void pack(Matrix b, int terms, int n, float* panel) {
  constexpr int kAll = kV * kLanes;
  if (b.row == 1 && n == kAll) return transpose({b.at, b.column, 1}, n, terms, panel, kAll);
  if (b.column == 1 && n == kAll) {
    for (int k = 0; k < terms; ++k)
      for (int v = 0; v < kV; ++v) {
        const float* from = b.from(k, v * kLanes).at;
        store(panel + k * kAll + v * kLanes, load(from));
        __builtin_prefetch(from + kAll, 0, 2);
      }
    return;
  }
  for (int k = 0; k < terms; ++k, panel += kAll) {
    for (int j = 0; j < n; ++j) panel[j] = *b.from(k, j).at;
    std::fill(panel + n, panel + kAll, 0.0f);
  }
}

// C's columns under one panel of B.
template <int kV, bool kByRows>
inline void stripe(Matrix a, Matrix b, int m, int terms, Output c) {
  constexpr int kAll = kV * kLanes, kM = kRegisters / kV;
  alignas(64) float packed[kTerms * kAll];  // a vector across two lines of the cache costs twice
  const bool in_place = b.column == 1 && c.n == kAll && m <= kInPlace;
  if (!in_place) pack<kV>(b, terms, c.n, packed);
  const Panel panel = in_place ? Panel{b.at, b.row} : Panel{packed, kAll};
  for (int i = 0; i < m; i += kM)
    tile_of<kV, kByRows>(std::min(kM, m - i), a.from(i, 0), panel, terms, {c.at + i * c.row, c.row, c.n, c.add});
}

// C [m, n] (+)= A [m, terms] B [terms, n]; C's rows lie c_row floats apart. A or its transpose has unit stride.
inline void multiply(Matrix a, Matrix b, int m, int n, int terms, float* c, ptrdiff_t c_row, bool add,
                     int in_sum = kTerms) {
  if (terms == 0 && !add)
    for (int i = 0; i < m; ++i) std::fill_n(c + i * c_row, n, 0.0f);
  for (int k = 0; k < terms; k += in_sum)
    for (int j = 0; j < n; j += kColumns) {
      const Output out{c + j, c_row, std::min(kColumns, n - j), add || k > 0};
      const auto stripe_of = out.n > kNarrowColumns ? (a.column == 1 ? stripe<kWide, true> : stripe<kWide, false>)
                                                    : (a.column == 1 ? stripe<kNarrow, true> : stripe<kNarrow, false>);
      stripe_of(a.from(0, k), b.from(k, j), m, std::min(in_sum, terms - k), out);
    }
}

}  // namespace native
