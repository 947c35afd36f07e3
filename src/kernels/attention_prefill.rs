//! Attention of many tokens in tiles; see `shaders/attention_prefill.wgsl`. Solves the
//! problems of [`attention`](crate::kernels::attention) where there are tokens enough.

use crate::caps::Caps;
use crate::dtype::KvFormat;
use crate::kernels::attention::{Attention, AttentionParams, cap_part, pages_part, params};
use crate::kernels::{Dispatch, Grid, PAGE, Part, Rows, Variant, kernel, tuning};
use crate::shape::stored_head_dim;

kernel!(
    ATTENTION_PREFILL,
    "attention_prefill",
    AttentionParams,
    [q: Read, k: Read, v: Read, y: Write],
    variants
);

/// Invocations of a workgroup: eight for four rows.
const WG: usize = 64;

/// Rows of a tile, each a query head of a token.
const ROWS: usize = WG / 8 * 4;

/// The most query heads of one workgroup.
const MOST_HEADS: usize = 8;

fn variant(parts: [Part; 3], heads: usize, stored: usize) -> Variant {
    let [kv, cap, pages] = parts;
    let numbers =
        [("WG", WG as u32), ("PAGE", PAGE as u32), ("HEADS", heads as u32), ("OCTS", stored as u32 / 8)];
    let parts = [Part::Step, Part::LaneWorkgroup, kv, Part::SpanWhole, cap, pages];
    Variant::new(&ATTENTION_PREFILL, &parts, &numbers)
}

fn variants(_: &Caps) -> Vec<Variant> {
    let mut all = Vec::new();
    for kv in KvFormat::ALL {
        for (heads, stored) in [(1, 8), (3, 64), (4, 128), (8, 80), (8, 256)] {
            for (cap, ring) in [(None, None), (Some(50.0), Some(4))] {
                let parts = [Part::Kv(kv), cap_part(cap), pages_part(ring)];
                all.push(variant(parts, heads, stored));
            }
        }
    }
    all
}

/// In tiles, if the adapter and a plan for up to `max_tokens` tokens are for it.
pub fn select(problem: &Attention, max_tokens: usize, caps: &Caps) -> Option<Dispatch> {
    if problem.splits > 1 || !tuning::attention_tiles(caps, max_tokens) {
        return None;
    }
    let group_heads = problem.heads / problem.kv_heads.max(1);
    let blocks = group_heads.div_ceil(MOST_HEADS);
    let heads = group_heads.div_ceil(blocks);
    let parts = [Part::Kv(problem.kv), cap_part(problem.cap), pages_part(problem.ring)];
    Some(Dispatch {
        variant: variant(parts, heads, stored_head_dim(problem.head_dim)),
        params: params(problem, blocks).words(),
        grid: Grid::Layers { groups: (problem.kv_heads * blocks) as u32, cols: (ROWS / heads) as u32 },
        rows: Rows::Tokens,
    })
}
