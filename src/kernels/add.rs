//! Sum of two activations; see `shaders/add.wgsl`. Used where no fusion takes the sum.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::padded;

params! {
    /// Params of [`ADD`].
    AddParams { quads: u32, scale: f32 }
}

kernel!(ADD, "add", AddParams, [a: Read, b: Read, y: Write], variants);

fn variant(rows: Rows, wg: u32) -> Variant {
    Variant::new(&ADD, &[Part::Step, Part::rows(rows), Part::LaneThread], &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    [Rows::Tokens, Rows::Outputs].map(|rows| variant(rows, tuning::flat(caps))).to_vec()
}

/// One invocation for four values of each of `rows` rows of `width`.
pub fn select(width: usize, scale: f32, rows: Rows, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let quads = padded(width) as u32 / 4;
    Dispatch {
        variant: variant(rows, wg),
        params: AddParams { quads, scale }.words(),
        grid: Grid::Flat { per_row: quads, per_group: wg },
        rows,
    }
}
