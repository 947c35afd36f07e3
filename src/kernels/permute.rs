//! Values of a row in another order; see `shaders/permute.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::padded;

params! {
    /// Params of [`PERMUTE`].
    PermuteParams { width: u32, pitch: u32 }
}

kernel!(PERMUTE, "permute", PermuteParams, [x: Read, order: Read, y: Write], variants);

fn variant(rows: Rows, wg: u32) -> Variant {
    Variant::new(&PERMUTE, &[Part::Step, Part::rows(rows), Part::LaneThread], &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    [Rows::Tokens, Rows::Outputs].map(|rows| variant(rows, tuning::flat(caps))).to_vec()
}

/// One invocation for a value of a row of `width`.
pub fn select(width: usize, rows: Rows, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let pitch = padded(width) as u32;
    Dispatch {
        variant: variant(rows, wg),
        params: PermuteParams { width: width as u32, pitch }.words(),
        grid: Grid::Flat { per_row: pitch, per_group: wg },
        rows,
    }
}
