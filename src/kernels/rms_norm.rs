//! Root-mean-square normalisation; see `shaders/rms_norm.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, KernelDecl, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::padded;

params! {
    /// Params of [`RMS_NORM`].
    RmsNormParams { quads: u32, width: f32, eps: f32 }
}

kernel!(RMS_NORM, "rms_norm", RmsNormParams, [x: Read, w: Read, y: Write], variants);

/// Normalise `rows` rows of `width` values.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    /// Width of a row, in values.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Which rows of the input.
    pub rows: Rows,
    /// Whether they are added to what is there.
    pub add: bool,
}

fn variant(kernel: &'static KernelDecl, lane: Part, rows: Rows, add: bool, wg: u32) -> Variant {
    let row = if add { Part::RowAdd } else { Part::RowStore };
    Variant::new(kernel, &[Part::Step, Part::rows(rows), lane, row], &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    all_variants(&RMS_NORM, caps)
}

/// Of this kernel or of `layer_norm`.
pub(super) fn all_variants(kernel: &'static KernelDecl, caps: &Caps) -> Vec<Variant> {
    let mut lanes = vec![Part::LaneWorkgroup];
    if caps.subgroup.is_some() {
        lanes.push(Part::LaneWorkgroupSubgroup);
    }
    let kinds = [(Rows::Tokens, false), (Rows::Tokens, true), (Rows::Outputs, false)];
    let of = |lane: &Part| kinds.map(|(rows, add)| variant(kernel, *lane, rows, add, 64));
    lanes.iter().flat_map(of).collect()
}

/// One workgroup a row.
pub fn select(problem: &RmsNorm, caps: &Caps) -> Dispatch {
    dispatch(&RMS_NORM, problem, caps)
}

/// By this kernel or by `layer_norm`.
pub(super) fn dispatch(kernel: &'static KernelDecl, problem: &RmsNorm, caps: &Caps) -> Dispatch {
    let params = RmsNormParams {
        quads: padded(problem.width) as u32 / 4,
        width: problem.width as f32,
        eps: problem.eps,
    };
    Dispatch {
        variant: variant(kernel, tuning::workgroup_lane(caps), problem.rows, problem.add, 64),
        params: params.words(),
        grid: Grid::Flat { per_row: 1, per_group: 1 },
        rows: problem.rows,
    }
}
