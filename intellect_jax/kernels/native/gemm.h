// C = A B or C += A B in float32, for one thread.
//
// B is cut into panels of kColumns columns, which a register tile of kRows x kColumns outputs walks down; A is read
// where it lies, by rows or by columns. Each output is the sum of shorter sums of kTerms products, which rounds less
// than one long sum (products.py says why that matters).
#pragma once

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace native {

constexpr int kColumns = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kRows = 12;
#elif defined(__AVX__)
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif
constexpr int kTerms = 128;

// A matrix in memory: element (i, j) is at[i * row + j * column].
struct Matrix {
  const float* at;
  ptrdiff_t row;
  ptrdiff_t column;

  Matrix from(ptrdiff_t i, ptrdiff_t j) const { return {at + i * row + j * column, row, column}; }
};

// kM rows of C, of which n <= kColumns columns; the panel's rows are `step` floats apart, all kColumns readable.
template <int kM, bool kByRows>
inline void tile(Matrix a, const float* panel, ptrdiff_t step, int terms, float* c, ptrdiff_t c_row, int n, bool add) {
  Vec sums[kM][2] = {};
  const float* at = a.at;
  const ptrdiff_t row = kByRows ? a.row : 1, next = kByRows ? 1 : a.column;
  for (int k = 0; k < terms; ++k, panel += step, at += next) {
    const Vec left = load(panel), right = load(panel + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kM; ++i) {
      const float x = at[i * row];
      sums[i][0] += x * left;
      sums[i][1] += x * right;
    }
  }
  if (n == kColumns) {
    for (int i = 0; i < kM; ++i, c += c_row) {
      store(c, add ? load(c) + sums[i][0] : sums[i][0]);
      store(c + kLanes, add ? load(c + kLanes) + sums[i][1] : sums[i][1]);
    }
    return;
  }
  for (int i = 0; i < kM; ++i, c += c_row)
    for (int j = 0; j < n; ++j) c[j] = (add ? c[j] : 0.0f) + sums[i][j / kLanes][j % kLanes];
}

template <bool kByRows, int kM = kRows>
inline void tile_of(int m, Matrix a, const float* panel, ptrdiff_t step, int terms, float* c, ptrdiff_t c_row, int n,
                    bool add) {
  if constexpr (kM > 1) {
    if (m < kM) return tile_of<kByRows, kM - 1>(m, a, panel, step, terms, c, c_row, n, add);
  }
  tile<kM, kByRows>(a, panel, step, terms, c, c_row, n, add);
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

// A panel of B, `terms` x n, n <= kColumns, as rows of kColumns floats; zeros past n.
inline void pack(Matrix b, int terms, int n, float* panel) {
  if (b.row == 1 && n == kColumns) return transpose({b.at, b.column, 1}, n, terms, panel, kColumns);
  for (int k = 0; k < terms; ++k, panel += kColumns) {
    for (int j = 0; j < n; ++j) panel[j] = b.at[k * b.row + j * b.column];
    for (int j = n; j < kColumns; ++j) panel[j] = 0;
  }
}

// C [m, n] (+)= A [m, terms] B [terms, n]; C's rows lie c_row floats apart. A or its transpose has unit stride.
inline void multiply(Matrix a, Matrix b, int m, int n, int terms, float* c, ptrdiff_t c_row, bool add,
                     int in_sum = kTerms) {
  float panel[kTerms * kColumns];
  if (terms == 0 && !add)
    for (int i = 0; i < m; ++i) std::fill_n(c + i * c_row, n, 0.0f);
  for (int k = 0; k < terms; k += in_sum) {
    const int some = std::min(in_sum, terms - k);
    for (int j = 0; j < n; j += kColumns) {
      const int width = std::min(kColumns, n - j);
      const bool in_place = b.column == 1 && width == kColumns && m <= 4 * kRows;
      const float* rows = in_place ? b.from(k, j).at : panel;
      if (!in_place) pack(b.from(k, j), some, width, panel);
      const ptrdiff_t step = in_place ? b.row : kColumns;
      for (int i = 0; i < m; i += kRows) {
        float* out = c + i * c_row + j;
        const int height = std::min(kRows, m - i);
        if (a.column == 1)
          tile_of<true>(height, a.from(i, k), rows, step, some, out, c_row, width, add || k > 0);
        else
          tile_of<false>(height, a.from(i, k), rows, step, some, out, c_row, width, add || k > 0);
      }
    }
  }
}

}  // namespace native
