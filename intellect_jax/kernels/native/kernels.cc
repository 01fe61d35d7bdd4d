// The kernels' entries for XLA: jax.ffi finds them by these names.
#include "attention.h"
#include "grouped.h"
#include "logprobs.h"

namespace native {

using Pool = ffi::ThreadPool;
using Flags = ffi::Buffer<ffi::PRED>;

XLA_FFI_DEFINE_HANDLER_SYMBOL(GroupedRows, grouped_rows,
                              ffi::Ffi::Bind().Ctx<Pool>().Arg<Floats>().Arg<Floats>().Arg<Integers>().Ret<Floats>()
                                  .Attr<bool>("transposed"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(GroupedProducts, grouped_products,
                              ffi::Ffi::Bind().Ctx<Pool>().Arg<Floats>().Arg<Floats>().Arg<Integers>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(Logprobs, logprobs,
                              ffi::Ffi::Bind().Ctx<Pool>().Arg<Floats>().Arg<Floats>().Arg<Integers>().Arg<Floats>()
                                  .Arg<Flags>().Ret<Floats>().Ret<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(LogprobsGradient, logprobs_gradient,
                              ffi::Ffi::Bind().Ctx<Pool>().Arg<Floats>().Arg<Floats>().Arg<Integers>().Arg<Floats>()
                                  .Arg<Flags>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()
                                  .Ret<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(Attention, attention,
                              ffi::Ffi::Bind().Ctx<Pool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Integers>()
                                  .Arg<Integers>().Ret<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(AttentionGradient, attention_gradient,
                              ffi::Ffi::Bind().Ctx<Pool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Integers>()
                                  .Arg<Integers>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>()
                                  .Ret<Floats>().Ret<Floats>());

}  // namespace native
