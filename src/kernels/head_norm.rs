//! Normalisation of queries and keys; see `shaders/head_norm.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::padded;

params! {
    /// Params of [`HEAD_NORM`].
    HeadNormParams {
        q: u32,
        k: u32,
        q_span: u32,
        k_span: u32,
        q_factors: u32,
        k_factors: u32,
        centred: u32,
        pitch: u32,
        eps: f32,
    }
}

kernel!(HEAD_NORM, "head_norm", HeadNormParams, [x: Read, qw: Read, kw: Read, y: Write], variants);

/// Rows of queries, keys and as many values.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorm {
    /// Queries of a row, and keys.
    pub widths: [usize; 2],
    /// How many of them are normalised together.
    pub spans: [usize; 2],
    /// Factors: as many as are normalised together, or one for each value.
    pub factors: [usize; 2],
    /// Whether about the mean.
    pub centred: bool,
    /// Added to the mean square.
    pub eps: f32,
}

fn variant(lane: Part) -> Variant {
    Variant::new(&HEAD_NORM, &[Part::Step, lane], &[("WG", 64)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let mut lanes = vec![Part::LaneWorkgroup];
    if caps.subgroup.is_some() {
        lanes.push(Part::LaneWorkgroupSubgroup);
    }
    lanes.into_iter().map(variant).collect()
}

/// One workgroup for what is normalised together.
pub fn select(problem: &HeadNorm, caps: &Caps) -> Dispatch {
    let ([q, k], [q_span, k_span]) = (problem.widths, problem.spans);
    let params = HeadNormParams {
        q: q as u32,
        k: k as u32,
        q_span: q_span as u32,
        k_span: k_span as u32,
        q_factors: problem.factors[0] as u32,
        k_factors: problem.factors[1] as u32,
        centred: u32::from(problem.centred),
        pitch: padded(q + 2 * k) as u32,
        eps: problem.eps,
    };
    Dispatch {
        variant: variant(tuning::workgroup_lane(caps)),
        params: params.words(),
        grid: Grid::Flat { per_row: (q / q_span + k / k_span + 1) as u32, per_group: 1 },
        rows: Rows::Tokens,
    }
}
