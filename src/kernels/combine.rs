//! The weighted sum of what experts computed; see `shaders/combine.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::padded;

params! {
    /// Params of [`COMBINE`].
    CombineParams { quads: u32, chosen: u32, pitch: u32 }
}

kernel!(COMBINE, "combine", CombineParams, [x: Read, routes: Read, y: Write], variants);

fn variant(add: bool, wg: u32) -> Variant {
    let row = if add { Part::RowAdd } else { Part::RowStore };
    Variant::new(&COMBINE, &[Part::Step, Part::LaneThread, row], &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    [false, true].map(|add| variant(add, tuning::flat(caps))).to_vec()
}

/// One invocation for four outputs of a row of `width`, by `chosen` experts; added to what is there, if
/// `add` says so.
pub fn select(width: usize, chosen: usize, add: bool, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let quads = padded(width) as u32 / 4;
    let params = CombineParams { quads, chosen: chosen as u32, pitch: padded(2 * chosen) as u32 };
    Dispatch {
        variant: variant(add, wg),
        params: params.words(),
        grid: Grid::Flat { per_row: quads, per_group: wg },
        rows: Rows::Tokens,
    }
}
