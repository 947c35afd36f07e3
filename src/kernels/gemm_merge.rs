//! Adds up what workgroups of `gemm` that shared the columns found; see
//! `shaders/gemm_merge.wgsl`.

use crate::caps::Caps;
use crate::kernels::gemv::Out;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::padded;

params! {
    /// Params of [`GEMM_MERGE`].
    GemmMergeParams { quads: u32, splits: u32, rows: u32, pitch: u32, first: u32, stride: u32 }
}

kernel!(GEMM_MERGE, "gemm_merge", GemmMergeParams, [parts: Read, y: Write], variants);

fn variant(out: Out, wg: u32) -> Variant {
    let parts = [Part::Step, Part::LaneThread, out.part(), Part::BiasNone];
    Variant::new(&GEMM_MERGE, &parts, &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    Out::ALL.map(|out| variant(out, tuning::flat(caps))).to_vec()
}

/// Sums in a row of the product of a linear whose result is `width` wide, with the padding.
pub fn part_values(width: usize, out: Out) -> usize {
    match out {
        Out::Store | Out::Add => padded(width),
        Out::Glu(_) => 2 * padded(width),
    }
}

/// One invocation for four sums.
pub fn select(width: usize, out: Out, splits: usize, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let rows = part_values(width, out) as u32;
    let params = GemmMergeParams {
        quads: rows / 4,
        splits: splits as u32,
        rows,
        pitch: padded(width) as u32,
        first: 0,
        stride: 1,
    };
    Dispatch {
        variant: variant(out, wg),
        params: params.words(),
        grid: Grid::Flat { per_row: rows / 4, per_group: wg },
        rows: Rows::Tokens,
    }
}
