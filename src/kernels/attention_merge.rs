//! Joins the parts of a split attention; see `shaders/attention_merge.wgsl`.

use crate::caps::Caps;
use crate::kernels::attention::{self, part_values};
use crate::kernels::{Dispatch, Grid, PAGE, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::{padded, stored_head_dim};

params! {
    /// Params of [`ATTENTION_MERGE`].
    AttentionMergeParams { head_dim: u32, stored: u32, part_pitch: u32, pitch: u32, width: u32, window: u32 }
}

kernel!(ATTENTION_MERGE, "attention_merge", AttentionMergeParams, [parts: Read, y: Write], variants);

fn variant(splits: usize, wg: u32) -> Variant {
    let numbers = [("WG", wg), ("PAGE", PAGE as u32), ("SPLITS", splits as u32)];
    Variant::new(&ATTENTION_MERGE, &[Part::Step, Part::LaneThread], &numbers)
}

fn variants(caps: &Caps) -> Vec<Variant> {
    [2, 8].map(|splits| variant(splits, tuning::flat(caps))).to_vec()
}

/// One invocation for an output.
pub fn select(heads: usize, head_dim: usize, window: Option<usize>, splits: usize, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let params = AttentionMergeParams {
        head_dim: head_dim as u32,
        stored: stored_head_dim(head_dim) as u32,
        part_pitch: padded(heads * splits * part_values(head_dim)) as u32,
        pitch: padded(heads * head_dim) as u32,
        width: (heads * head_dim) as u32,
        window: attention::window(window),
    };
    Dispatch {
        variant: variant(splits, wg),
        params: params.words(),
        grid: Grid::Flat { per_row: params.pitch, per_group: wg },
        rows: Rows::Tokens,
    }
}
