//! Sizes: the padding that every activation row obeys, and rounding.

/// Activation rows are padded with zeros to a multiple of this many floats, and weight rows
/// to as many columns, so that kernels work on whole groups and need no tails.
pub const GROUP: usize = 32;

/// The largest number of tokens that one mat-vec thread serves; activation buffers hold a
/// multiple of it, so that a last, partly filled block of columns reads inside the buffer.
pub const MAX_COLS: usize = 8;

/// Physical rows of a weight shard are a multiple of this (zero rows fill it up), so that a
/// team that owns several rows reads inside the buffer.
pub const ROW_ALIGN: usize = 8;

/// Rows of a bundle, where groups of neighbouring rows are neighbours: four for each of the eight
/// lanes of a CPU's vector register.
pub const BUNDLE: usize = 32;

/// Experts of a layer, at most: those who group tokens by experts count them in workgroup memory.
pub const MOST_EXPERTS: usize = 512;

/// Rotations come from two tables: one by 0 to ROPE_FINE - 1 positions, one by multiples of
/// ROPE_FINE.
pub const ROPE_FINE: usize = 256;

/// `n` rounded up to a multiple of `m` (`m` > 0).
pub const fn round_up(n: usize, m: usize) -> usize {
    n.div_ceil(m) * m
}

/// The stored length of an activation row of `n` values, in floats.
pub const fn padded(n: usize) -> usize {
    round_up(n, GROUP)
}

/// Values that a head takes in pages and in rotated queries: whole groups of eight, so that
/// they load sixteen bytes at a time in every format of the cache.
pub const fn stored_head_dim(head_dim: usize) -> usize {
    round_up(head_dim, 8)
}

/// Which rows of the batch an operation works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rows {
    /// All tokens.
    Tokens,
    /// The tokens whose logits are wanted.
    Outputs,
    /// So many of each token: one for each expert that it chose.
    Chosen(u32),
}

impl Rows {
    /// How many there are in a batch of `tokens` tokens with `outputs` outputs.
    pub fn count(self, tokens: usize, outputs: usize) -> usize {
        match self {
            Self::Tokens => tokens,
            Self::Outputs => outputs,
            Self::Chosen(times) => tokens * times as usize,
        }
    }
}
