//! Attention whose invocations share nothing; see `shaders/attention_keys.wgsl`. Solves the
//! problems of [`attention`], which chooses between the two.

use crate::caps::Caps;
use crate::kernels::attention::{self, AttentionParams};
use crate::kernels::{Variant, kernel};

kernel!(
    ATTENTION_KEYS,
    "attention_keys",
    AttentionParams,
    [q: Read, k: Read, v: Read, y: Write],
    variants
);

fn variants(caps: &Caps) -> Vec<Variant> {
    let mut all = attention::all_variants(caps);
    all.retain(|v| v.kernel() == &ATTENTION_KEYS);
    all
}
