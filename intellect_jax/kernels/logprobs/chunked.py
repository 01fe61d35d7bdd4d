"""Log-probability and entropy of given tokens, from final hidden states and the head's kernel, without their logits.

Logits exist for a chunk of tokens times a chunk of the vocabulary at a time, in float32. The forward pass keeps a
running softmax over the vocabulary (Milakov and Gimelshein 2018, arXiv:1805.02867, with one more sum for the entropy);
the backward pass makes each chunk's logits again from the saved logsumexp (as Wijmans et al. 2024, arXiv:2411.09009).
Only members are looked at: they are compacted into the first chunks, and chunks without a member are skipped.

The vocabulary is the outer loop: what is as large as the kernel (its rows gathered from shards, their gradient before
it is reduced) then exists for a chunk of columns at a time, at the price of a float32 array of all tokens' d_hidden.
It serves every backend, CPUs too where native.py cannot. tokamax 0.0.12 has a linear_softmax_cross_entropy_loss, but
that returns the summed loss alone: no value per token, no temperature, no entropy.

Shape suffixes: B batch, S sequence, T = B*S tokens, D embed, V vocabulary; N chunks of C tokens; W columns of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from intellect_jax.kernels.logprobs.plain import PerToken
from intellect_jax.kernels.products import in_parts

_LARGE = 16  # features that head_logits takes apart; 4 leave a sixth more error, 32 no less
_LOW = -1e30  # below every logit, and differences with it are finite


def head_logits(hidden: Float[Array, "t d"], kernel: Float[Array, "d w"]) -> Float[Array, "t w"]:
    """hidden @ kernel in float32. Of float32 factors the few features that are large are multiplied apart.

    A language model's last hidden states have a few features ten times as large as all others (Sun et al. 2024,
    arXiv:2402.17762). A CPU adds a logit's products up one after the other, and each addition after a large one rounds
    to its last bit: most of the error of SmolLM2's log-probabilities, which against float64 is 9.4e-6 nats (root mean
    square) in one sum, 4.5e-6 so, and 3.0e-6 where all other products are added up in parts (products.py).
    """
    if hidden.dtype != jnp.float32:
        return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    large = jax.lax.top_k(jnp.abs(hidden).mean(axis=0), min(_LARGE, hidden.shape[-1] // 4))[1]
    return in_parts(hidden.at[:, large].set(0), kernel, 1) + hidden[:, large] @ kernel[large]


def _same(x: Array) -> Array:
    return x


class Shards(NamedTuple):
    """How devices that share the kernel, or have other tokens, work together. By default one device has everything.

    Each device has a range of columns, the vocabulary's, and of these some rows. Its tokens' hidden states are whole.
    """

    part: Int[Array, ""] | int = 0  # which range of columns
    gather: Callable[[Array], Array] = _same  # own rows of columns -> all rows
    scatter: Callable[[Array], Array] = _same  # all rows of columns -> own rows of the sum over other tokens
    largest: Callable[[Array], Array] = _same  # over the ranges of columns
    total: Callable[[Array], Array] = _same  # over the ranges of columns
    everyone: Callable[[Array], Array] = _same  # own rows -> their sum over the tokens that scatter left out


ALONE = Shards()


def chunk_sizes(tokens: int, vocabulary: int) -> tuple[int, int]:
    """(C, W): how many tokens and columns have logits at once.

    An eighth of the tokens, for what the last chunk lacks in members is wasted, but 128 to 4096; at most 2^24 logits
    (64 MiB) and 8192 columns. The backward pass moves 4/3 (1/C + 1/W) bytes of float32 sums a FLOP, so both are large
    where there is much to do: at 2048 and 8192 an eighth of the time on an H100. A CPU hardly minds.
    """
    rows = min(max(1 << max(tokens // 8, 1).bit_length() - 1, 128), 4096, tokens)
    parts = -(-vocabulary // min(8192, (1 << 24) // rows))
    width = -(-vocabulary // (128 * parts)) * 128 if parts > 1 else vocabulary
    return rows, width


class Tokens(NamedTuple):
    """The members in chunks."""

    which: Int[Array, "n c"]  # of the T tokens; T where none is left
    place: Int[Array, " t"]  # where each member is in the flat chunks

    def take(self, x: Array, fill: float = 0) -> Array:
        """[T, ...] -> [N, C, ...]."""
        return x.at[self.which].get(mode="fill", fill_value=fill)

    def put_back(self, x: Array) -> Array:
        """[N, C, ...] -> [T, ...]; whoever is no member gets somebody's."""
        return x.reshape(-1, *x.shape[2:])[self.place]


def compact(members: Bool[Array, " t"], rows: int) -> Tokens:
    slots = -(-members.size // rows) * rows
    place = jnp.cumsum(members) - 1
    nobody = jnp.full(slots, members.size)
    which = nobody.at[jnp.where(members, place, slots)].set(jnp.arange(members.size), mode="drop")
    return Tokens(which.reshape(-1, rows), jnp.maximum(place, 0))


def _rows(flat: Float[Array, "t d"], which: Int[Array, " c"]) -> Float[Array, "c d"]:
    return flat.at[which].get(mode="fill", fill_value=0)


class Columns(NamedTuple):
    """A chunk of the kernel's columns. The last one may repeat columns of the one before, to be of the same width."""

    kernel: Float[Array, "d w"]
    start: Int[Array, ""]
    new: Int[Array, ""]  # the first column that is not repeated
    number: Int[Array, " w"]


def _over_columns(step: Callable[[Any, Columns], Any], carry: Any, kernel, width: int, dtype, shards: Shards) -> Any:
    """The carry after ``step`` on every chunk of columns, cast to ``dtype``."""

    def body(carry, new):
        start = jnp.minimum(new, kernel.shape[1] - width)
        part = jax.lax.dynamic_slice_in_dim(kernel, start, width, axis=1).astype(dtype)
        return step(carry, Columns(shards.gather(part), start, new, start + jnp.arange(width))), None

    return jax.lax.scan(body, carry, jnp.arange(0, kernel.shape[1], width))[0]


def _scaled_logits(hidden: Array, temperature: Array, columns: Columns) -> Float[Array, "c w"]:
    logits = head_logits(hidden, columns.kernel) / temperature[:, None]
    return jnp.where(columns.number >= columns.new, logits, _LOW)


class Running(NamedTuple):
    """Of every token, sums over the columns seen so far, z being the logit over the temperature."""

    peak: Array  # max z
    mass: Array  # sum exp(z - peak)
    moment: Array  # sum exp(z - peak) (z - peak)
    target: Array  # z of the target, 0 if it was not among them

    def rebased(self, peak: Array) -> Running:
        """The same relative to another peak."""
        shift = self.peak - peak
        scale = jnp.exp(shift)
        return Running(peak, self.mass * scale, (self.moment + shift * self.mass) * scale, self.target)

    def extended(self, z: Float[Array, "c w"], targets: Int[Array, " c"], columns: Columns) -> Running:
        """With the logits of more columns."""
        old = self.rebased(jnp.maximum(self.peak, z.max(axis=-1)))
        centred = z - old.peak[:, None]
        weights = jnp.exp(centred)
        at = jnp.clip(targets - columns.start, 0, z.shape[1] - 1)[:, None]
        chosen = jnp.take_along_axis(z, at, axis=1)[:, 0]
        among = (targets >= columns.new) & (targets < columns.start + z.shape[1])
        return Running(
            old.peak,
            old.mass + weights.sum(axis=-1),
            old.moment + (weights * centred).sum(axis=-1),
            jnp.where(among, chosen, old.target),
        )


def forward_pass(
    hidden: Float[Array, "b s d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b s"],
    temperature: PerToken,
    members: Bool[Array, "b s"],
    shards: Shards = ALONE,
) -> tuple[PerToken, PerToken, PerToken]:
    """Logprobs and entropy, 0 outside members, and logsumexp(logits / temperature), all float32."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows, width = chunk_sizes(flat.shape[0], kernel.shape[1])
    tokens = compact(members.reshape(-1), rows)
    own = targets.reshape(-1) - shards.part * kernel.shape[1]
    per_token = (tokens.which, tokens.take(own), tokens.take(temperature.reshape(-1), 1))
    zero = jnp.zeros(tokens.which.shape, jnp.float32)

    def step(running: Running, columns: Columns) -> Running:
        def extend(old: Running, which, targets, temperature) -> Running:
            return old.extended(_scaled_logits(_rows(flat, which), temperature, columns), targets, columns)

        def body(_, scanned):
            return None, jax.lax.cond(scanned[1][0] < len(flat), extend, lambda old, *_: old, *scanned)

        return jax.lax.scan(body, None, (running, *per_token))[1]

    running = _over_columns(step, Running(zero + _LOW, zero, zero, zero), kernel, width, hidden.dtype, shards)
    running = Running(*(tokens.put_back(x).reshape(members.shape) for x in running))
    return _finished(running, members, shards)


def _finished(running: Running, members: Array, shards: Shards) -> tuple[PerToken, PerToken, PerToken]:
    # Whoever is no member gets a sum that has a logarithm.
    safe = Running(*(jnp.where(members, x, other) for x, other in zip(running, (0.0, 1.0, 0.0, 0.0), strict=True)))
    whole = safe.rebased(shards.largest(safe.peak))
    mass, moment, target = map(shards.total, (whole.mass, whole.moment, whole.target))
    log_mass = jnp.log(mass)
    logprobs, entropy = target - whole.peak - log_mass, log_mass - moment / mass
    return jnp.where(members, logprobs, 0.0), jnp.where(members, entropy, 0.0), whole.peak + log_mass


class Given(NamedTuple):
    """What the backward pass knows of every token: arrays [N, C], or [C] of one chunk."""

    which: Array
    target: Array
    temperature: Array
    entropy: Array
    logsumexp: Array
    d_logprob: Array
    d_entropy: Array

    def d_logits(self, hidden: Float[Array, "c d"], columns: Columns) -> Float[Array, "c w"]:
        """Of the logprob log p_y: 1[v = y] - p_v; of the entropy H: -p_v (log p_v + H); both over the temperature."""
        log_p = _scaled_logits(hidden, self.temperature, columns) - self.logsumexp[:, None]
        slope = self.d_logprob + self.d_entropy * self.entropy
        spread = -jnp.exp(log_p) * (slope[:, None] + self.d_entropy[:, None] * log_p)
        here = jnp.where(self.target >= columns.new, self.target, -1)[:, None] == columns.number
        return (jnp.where(here, self.d_logprob[:, None], 0.0) + spread) / self.temperature[:, None]

    def gradients(self, flat: Float[Array, "t d"], columns: Columns) -> tuple[Float[Array, "c d"], Float[Array, "d w"]]:
        """Of one chunk of tokens: to their hidden states and to the columns, in float32."""
        hidden = _rows(flat, self.which)
        d_logits = self.d_logits(hidden, columns).astype(flat.dtype)
        d_hidden = jnp.matmul(d_logits, columns.kernel.T, preferred_element_type=jnp.float32)
        return d_hidden, jnp.matmul(hidden.T, d_logits, preferred_element_type=jnp.float32)


def backward_pass(
    hidden: Float[Array, "b s d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b s"],
    temperature: PerToken,
    members: Bool[Array, "b s"],
    *results: PerToken,
    shards: Shards = ALONE,
) -> tuple[Float[Array, "b s d"], Float[Array, "d v"]]:
    """Gradients to hidden states and kernel; ``results``: entropy and logsumexp, and the gradients to both outputs."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows, width = chunk_sizes(flat.shape[0], kernel.shape[1])
    tokens = compact(members.reshape(-1), rows)
    own = tokens.take(targets.reshape(-1) - shards.part * kernel.shape[1])
    temperature = tokens.take(temperature.reshape(-1), 1)
    given = Given(tokens.which, own, temperature, *(tokens.take(x.reshape(-1)) for x in results))

    def step(carry, columns: Columns):
        def body(sums, scanned):
            chunk, part = scanned

            def add(loop):
                d_some, d_columns = part.gradients(flat, columns)
                return loop[0] + 1, loop[1].at[chunk].add(d_some), loop[2] + d_columns

            # A loop of one round or none: a conditional would copy both sums on a GPU, whichever way it goes.
            rounds_done = (part.which[0] == len(flat)).astype(jnp.int32)
            return jax.lax.while_loop(lambda loop: loop[0] < 1, add, (rounds_done, *sums))[1:], None

        d_hidden, d_kernel = carry
        start = d_hidden, jnp.zeros(columns.kernel.shape, jnp.float32)
        (d_hidden, d_columns), _ = jax.lax.scan(body, start, (jnp.arange(len(tokens.which)), given))
        old = jax.lax.dynamic_slice_in_dim(d_kernel, columns.start, width, axis=1)
        new = old + shards.scatter(d_columns)  # a repeated column has no gradient the second time
        return d_hidden, jax.lax.dynamic_update_slice_in_dim(d_kernel, new, columns.start, axis=1)

    zeros = (jnp.zeros((*tokens.which.shape, flat.shape[1]), jnp.float32), jnp.zeros(kernel.shape, jnp.float32))
    d_hidden, d_kernel = _over_columns(step, zeros, kernel, width, hidden.dtype, shards)
    whole = tokens.put_back(shards.total(d_hidden)).reshape(hidden.shape)
    d_hidden = jnp.where(members[..., None], whole, 0.0).astype(hidden.dtype)
    return d_hidden, shards.everyone(d_kernel).astype(kernel.dtype)
