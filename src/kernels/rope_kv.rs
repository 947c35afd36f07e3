//! Rotary position embedding and the append to the KV cache; see `shaders/rope_kv.wgsl`.

use crate::caps::Caps;
use crate::dtype::KvFormat;
use crate::kernels::attention::pages_part;
use crate::kernels::{Dispatch, Grid, PAGE, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::{ROPE_FINE, padded, stored_head_dim};

params! {
    /// Params of [`ROPE_KV`].
    RopeKvParams {
        heads: u32,
        kv_heads: u32,
        pairs: u32,
        rotated: u32,
        pitch: u32,
        q_pitch: u32,
        ring: u32,
        q_factors: u32,
        k_factors: u32,
        eps: f32,
    }
}

kernel!(ROPE_KV, "rope_kv", RopeKvParams, [qkv: Read, rope: Read, q: Write, k: Write, v: Write, qw: Read, kw: Read], variants);

/// The heads of one layer.
#[derive(Debug, Clone, Copy)]
pub struct RopeKv {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// Values of a head that turn.
    pub rotated: usize,
    /// Pages of a sequence, where a layer with a window uses them in turn.
    pub ring: Option<usize>,
    /// Factors of queries and of keys and the epsilon, where heads are normalised on the way.
    pub norm: Option<([usize; 2], f32)>,
    /// Format of the cache.
    pub kv: KvFormat,
}

fn variant(kv: KvFormat, ring: Option<usize>, norm: bool, wg: u32, stored: usize) -> Variant {
    let parts = [
        Part::Step,
        Part::LaneThread,
        Part::Kv(kv),
        pages_part(ring),
        if norm { Part::HeadsRms } else { Part::HeadsPlain },
    ];
    let numbers =
        [("WG", wg), ("PAGE", PAGE as u32), ("OCTS", stored as u32 / 8), ("FINE", ROPE_FINE as u32)];
    Variant::new(&ROPE_KV, &parts, &numbers)
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let wg = tuning::flat(caps);
    let all = KvFormat::ALL
        .into_iter()
        .flat_map(|kv| [8, 64, 80].map(|stored| variant(kv, None, false, wg, stored)));
    all.chain(KvFormat::ALL.map(|kv| variant(kv, Some(4), true, wg, 64))).collect()
}

/// One invocation for a pair of a query, or for what the format packs at once.
pub fn select(problem: &RopeKv, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let width = (problem.heads + 2 * problem.kv_heads) * problem.head_dim;
    let stored = stored_head_dim(problem.head_dim);
    let units = (stored / 2).div_ceil(problem.kv.packed_pairs());
    let items = problem.heads * stored / 2 + 2 * problem.kv_heads * units;
    let params = RopeKvParams {
        heads: problem.heads as u32,
        kv_heads: problem.kv_heads as u32,
        pairs: problem.head_dim as u32 / 2,
        rotated: problem.rotated as u32 / 2,
        pitch: padded(width) as u32 / 2,
        q_pitch: padded(problem.heads * stored) as u32 / 2,
        ring: problem.ring.map_or(0, |pages| pages as u32),
        q_factors: problem.norm.map_or(1, |(factors, _)| factors[0] as u32 / 2),
        k_factors: problem.norm.map_or(1, |(factors, _)| factors[1] as u32 / 2),
        eps: problem.norm.map_or(0.0, |(_, eps)| eps),
    };
    Dispatch {
        variant: variant(problem.kv, problem.ring, problem.norm.is_some(), wg, stored),
        params: params.words(),
        grid: Grid::Flat { per_row: items as u32, per_group: wg },
        rows: Rows::Tokens,
    }
}
