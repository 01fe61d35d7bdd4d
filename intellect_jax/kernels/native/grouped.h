// Matrix products whose rows come in groups, each with a matrix of its own. One group is an ordinary product.
#pragma once

#include "gemm.h"
#include "threads.h"

namespace native {

using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Buffer<ffi::S32>;

constexpr int64_t kRowsOfTask = 4 * kFew, kColumnsOfTask = 256;

// A part of one group's output.
struct Part {
  int64_t group, first, rows;  // the group's rows
  int64_t top, height;         // of the output
  int64_t left, width;
};

template <typename Add>
void each_stretch(int64_t total, int64_t stretch, const Add& add) {
  for (int64_t start = 0; start < total; start += stretch) add(start, std::min(stretch, total - start));
}

// The length of equal stretches, none longer than `most`, whose number is a multiple of `count`: whole tiles.
inline int64_t even_stretch(int64_t total, int64_t most, int64_t count) {
  constexpr int64_t tile = kRegisters / kNarrow;
  const int64_t pieces = std::max<int64_t>(1, ((total + most - 1) / most + count - 1) / count * count);
  return std::max<int64_t>(1, (total + pieces * tile - 1) / (pieces * tile)) * tile;
}

// The parts of all groups' outputs: those have either the group's rows or, `inner`, as many as there are features.
inline std::vector<Part> parts_of(const Integers& sizes, int64_t p, int64_t inner, int64_t columns, int64_t threads,
                                  int64_t* end) {
  std::vector<Part> parts;
  const int64_t groups = sizes.element_count(), count = groups < 4 * threads ? 2 * threads : 1;
  *end = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t rows = std::min<int64_t>(sizes.typed_data()[group], p - *end), first = *end;
    const int64_t height = inner ? inner : rows, top = inner ? 0 : first;
    *end += rows;
    each_stretch(height, even_stretch(height, kRowsOfTask, count), [&](int64_t from, int64_t some) {
      each_stretch(columns, kColumnsOfTask, [&](int64_t left, int64_t width) {
        parts.push_back({group, first, rows, top + from, some, left, width});
      });
    });
  }
  return parts;
}

// y[p] = x[p] w[group of p], or times its transpose; 0 past the groups.
inline ffi::Error grouped_rows(ffi::ThreadPool pool, Floats x, Floats w, Integers sizes, ffi::ResultBuffer<ffi::F32> y,
                               bool transposed) {
  const int64_t p = x.dimensions()[0], in = x.dimensions()[1], out = y->dimensions()[1];
  int64_t end;
  const std::vector<Part> parts = parts_of(sizes, p, 0, out, pool.num_threads(), &end);
  parallel(pool, parts.size(), [&](int64_t i) {
    const Part& part = parts[i];
    const float* matrix = w.typed_data() + part.group * in * out;
    const Matrix a{x.typed_data() + part.top * in, in, 1};
    const Matrix b = transposed ? Matrix{matrix, 1, in} : Matrix{matrix, out, 1};
    float* c = y->typed_data() + part.top * out + part.left;
    multiply(a, b.from(0, part.left), part.height, part.width, in, c, out, false);
  });
  std::fill(y->typed_data() + end * out, y->typed_data() + p * out, 0.0f);
  return ffi::Error::Success();
}

// out[e] = sum over the rows p of group e of x[p]^T g[p].
inline ffi::Error grouped_products(ffi::ThreadPool pool, Floats x, Floats g, Integers sizes,
                                   ffi::ResultBuffer<ffi::F32> y) {
  const int64_t p = x.dimensions()[0], in = x.dimensions()[1], out = g.dimensions()[1];
  int64_t end;
  const std::vector<Part> parts = parts_of(sizes, p, in, out, pool.num_threads(), &end);
  parallel(pool, parts.size(), [&](int64_t i) {
    const Part& part = parts[i];
    const Matrix a{x.typed_data() + part.first * in + part.top, 1, in};
    const Matrix b{g.typed_data() + part.first * out + part.left, out, 1};
    float* c = y->typed_data() + (part.group * in + part.top) * out + part.left;
    multiply(a, b, part.height, part.width, part.rows, c, out, false);
  });
  return ffi::Error::Success();
}

}  // namespace native
