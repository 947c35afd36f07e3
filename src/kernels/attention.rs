//! Grouped-query attention over the paged cache; see `shaders/attention.wgsl`.

use crate::caps::Caps;
use crate::dtype::KvFormat;
use crate::kernels::{Dispatch, Grid, PAGE, Part, Rows, Variant, attention_keys, kernel, params, tuning};
use crate::shape::{padded, stored_head_dim};

params! {
    /// Params of [`ATTENTION`].
    AttentionParams {
        kv_heads: u32,
        group_heads: u32,
        blocks: u32,
        head_dim: u32,
        scale: f32,
        q_pitch: u32,
        pitch: u32,
        width: u32,
        window: u32,
        cap: f32,
        ring: u32,
    }
}

kernel!(ATTENTION, "attention", AttentionParams, [q: Read, k: Read, v: Read, y: Write], variants);

/// The heads of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// Factor of the scores, usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// How many positions a token sees, if not all.
    pub window: Option<usize>,
    /// What no score exceeds, if there is a cap.
    pub cap: Option<f32>,
    /// Pages of a sequence, where a layer with a window uses them in turn.
    pub ring: Option<usize>,
    /// Format of the cache.
    pub kv: KvFormat,
    /// Workgroups that share the cache of a token; with more than one each leaves a part for
    /// `attention_merge`.
    pub splits: usize,
}

/// Values of a split's part: largest score, sum, padding, and the outputs of a head.
pub const fn part_values(head_dim: usize) -> usize {
    8 + stored_head_dim(head_dim)
}

/// How attention divides its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Whether each invocation attends to keys of its own, by `attention_keys`.
    pub keys: bool,
    /// Invocations of a workgroup: one team.
    pub wg: u32,
    /// The most query heads of one workgroup.
    pub heads: usize,
}

/// Workgroups that a token takes before any splits.
pub fn groups(heads: usize, kv_heads: usize, head_dim: usize, caps: &Caps) -> usize {
    let group_heads = heads / kv_heads.max(1);
    let shape = tuning::attention(caps, group_heads, stored_head_dim(head_dim));
    kv_heads * group_heads.div_ceil(heads_per_group(group_heads, shape))
}

/// Query heads of one KV head that one workgroup serves: equal shares, so that no workgroup
/// idles on part of its rows.
fn heads_per_group(group_heads: usize, shape: Shape) -> usize {
    group_heads.div_ceil(group_heads.div_ceil(shape.heads))
}

fn variant(shape: Shape, parts: [Part; 4], heads: usize, stored: usize, splits: usize) -> Variant {
    let [lane, kv, cap, pages] = parts;
    let (span, count) = if splits > 1 { (Part::SpanSplit, 5) } else { (Part::SpanWhole, 4) };
    let numbers = [
        ("WG", shape.wg),
        ("PAGE", PAGE as u32),
        ("HEADS", heads as u32),
        ("OCTS", stored as u32 / 8),
        ("SPLITS", splits as u32),
    ];
    let kernel = if shape.keys { &attention_keys::ATTENTION_KEYS } else { &ATTENTION };
    Variant::new(kernel, &[Part::Step, lane, kv, span, cap, pages], &numbers[..count])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let mut all = all_variants(caps);
    all.retain(|v| v.kernel() == &ATTENTION);
    all
}

/// Of this kernel and of `attention_keys`: an adapter gets one or the other.
pub(super) fn all_variants(caps: &Caps) -> Vec<Variant> {
    let mut lanes = vec![Part::LaneWorkgroup];
    if caps.subgroup.is_some() {
        lanes.push(Part::LaneWorkgroupSubgroup);
    }
    let mut all = Vec::new();
    for lane in lanes {
        for kv in KvFormat::ALL {
            for (group_heads, stored) in [(1, 8), (3, 64), (4, 128), (8, 80), (8, 256)] {
                let shape = tuning::attention(caps, group_heads, stored);
                let heads = heads_per_group(group_heads, shape);
                for (splits, cap, ring) in [(1, None, None), (8, None, None), (1, Some(50.0), Some(4))] {
                    let parts = [lane, Part::Kv(kv), cap_part(cap), pages_part(ring)];
                    all.push(variant(shape, parts, heads, stored, splits));
                }
            }
        }
    }
    all
}

/// The params of `problem` where `blocks` workgroups share the heads of a KV head.
pub(super) fn params(problem: &Attention, blocks: usize) -> AttentionParams {
    let width = match problem.splits {
        1 => problem.heads * problem.head_dim,
        splits => problem.heads * splits * part_values(problem.head_dim),
    };
    AttentionParams {
        kv_heads: problem.kv_heads as u32,
        group_heads: (problem.heads / problem.kv_heads.max(1)) as u32,
        blocks: blocks as u32,
        head_dim: problem.head_dim as u32,
        scale: problem.scale,
        q_pitch: padded(problem.heads * stored_head_dim(problem.head_dim)) as u32,
        pitch: padded(width) as u32,
        width: width as u32,
        window: window(problem.window),
        cap: problem.cap.unwrap_or(f32::MAX),
        ring: problem.ring.map_or(0, |pages| pages as u32),
    }
}

/// The part for scores with or without a cap.
pub(super) fn cap_part(cap: Option<f32>) -> Part {
    if cap.is_some() { Part::CapTanh } else { Part::CapNone }
}

/// The part for pages of all positions, or for those that are used in turn.
pub(super) fn pages_part(ring: Option<usize>) -> Part {
    if ring.is_some() { Part::PagesRing } else { Part::PagesAll }
}

/// A window as kernels have it: one that no text fills, if there is none.
pub(super) fn window(window: Option<usize>) -> u32 {
    window.and_then(|w| u32::try_from(w).ok()).unwrap_or(u32::MAX)
}

/// One workgroup for a token and some or all of the query heads that share a KV head.
pub fn select(problem: &Attention, caps: &Caps) -> Dispatch {
    let stored = stored_head_dim(problem.head_dim);
    let group_heads = problem.heads / problem.kv_heads.max(1);
    let shape = tuning::attention(caps, group_heads, stored);
    let heads = heads_per_group(group_heads, shape);
    let blocks = group_heads.div_ceil(heads);
    let parts =
        [tuning::workgroup_lane(caps), Part::Kv(problem.kv), cap_part(problem.cap), pages_part(problem.ring)];
    Dispatch {
        variant: variant(shape, parts, heads, stored, problem.splits),
        params: params(problem, blocks).words(),
        grid: Grid::PerRow { groups: (problem.kv_heads * blocks) as u32, splits: problem.splits as u32 },
        rows: Rows::Tokens,
    }
}
