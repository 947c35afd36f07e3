//! Grouped-query attention on the lanes of a CPU; see `shaders/attention_lanes.wgsl`. Solves the
//! problems of [`attention`](crate::kernels::attention).

use crate::caps::Caps;
use crate::dtype::KvFormat;
use crate::kernels::attention::{Attention, AttentionParams};
use crate::kernels::{Dispatch, PAGE, Part, Variant, kernel, tuning};
use crate::shape::stored_head_dim;

kernel!(ATTENTION_LANES, "attention_lanes", AttentionParams, [q: Read, k: Read, v: Read, y: Write], variants);

/// The most query heads that one workgroup serves.
const MOST_HEADS: usize = 4;

fn variant(kv: KvFormat, heads: usize, stored: usize, splits: usize) -> Variant {
    let (span, count) = if splits > 1 { (Part::SpanSplit, 5) } else { (Part::SpanWhole, 4) };
    let numbers = [
        ("WG", 8),
        ("PAGE", PAGE as u32),
        ("HEADS", heads as u32),
        ("OCTS", (stored / 8) as u32),
        ("SPLITS", splits as u32),
    ];
    Variant::new(&ATTENTION_LANES, &[Part::Step, Part::LaneSubgroup, Part::Kv(kv), span], &numbers[..count])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    if caps.subgroup.is_none() {
        return Vec::new();
    }
    let shapes = [(1, 8), (3, 64), (4, 128), (4, 80), (2, 256)];
    let of = |kv| shapes.map(|(heads, stored)| variant(kv, heads, stored, 1));
    let mut all: Vec<_> = KvFormat::ALL.into_iter().flat_map(of).collect();
    all.push(variant(KvFormat::F16, 3, 64, 8));
    all
}

/// One workgroup of eight lanes for a token and a few of the query heads that share a KV head,
/// if the adapter is a CPU whose lanes can shuffle.
pub fn select(problem: &Attention, caps: &Caps) -> Option<Dispatch> {
    let stored = stored_head_dim(problem.head_dim);
    tuning::attention_lanes(caps)
        .then(|| problem.dispatch(MOST_HEADS, |heads| variant(problem.kv, heads, stored, problem.splits)))
}
