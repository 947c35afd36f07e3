//! The gated activation of the feed-forward part; see `shaders/swiglu.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::padded;

params! {
    /// Params of [`SWIGLU`].
    SwigluParams { quads: u32, pitch: u32 }
}

kernel!(SWIGLU, "swiglu", SwigluParams, [g: Read, y: Write], variants);

fn variant(wg: u32) -> Variant {
    Variant::new(&SWIGLU, &[Part::Step, Part::LaneThread], &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    vec![variant(tuning::flat(caps))]
}

/// One invocation for four outputs of a row of `width`.
pub fn select(width: usize, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let quads = padded(width) as u32 / 4;
    Dispatch {
        variant: variant(wg),
        params: SwigluParams { quads, pitch: padded(2 * width) as u32 / 4 }.words(),
        grid: Grid::Flat { per_row: quads, per_group: wg },
        rows: Rows::Tokens,
    }
}
