//! The gated activation of the feed-forward part; see `shaders/glu.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::nonlinearity::Nonlinearity;
use crate::shape::padded;

params! {
    /// Params of [`GLU`].
    GluParams { quads: u32, pitch: u32, times: u32 }
}

kernel!(GLU, "glu", GluParams, [g: Read, y: Write], variants);

fn variant(act: Nonlinearity, wg: u32) -> Variant {
    Variant::new(&GLU, &[Part::Step, Part::LaneThread, Part::Act(act)], &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    Nonlinearity::ALL.map(|act| variant(act, tuning::flat(caps))).to_vec()
}

/// One invocation for four outputs of a row of `width`, of which a token has `times`.
pub fn select(width: usize, times: usize, act: Nonlinearity, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let quads = padded(width) as u32 / 4;
    Dispatch {
        variant: variant(act, wg),
        params: GluParams { quads, pitch: padded(2 * width) as u32 / 4, times: times as u32 }.words(),
        grid: Grid::Flat { per_row: quads * times as u32, per_group: wg },
        rows: Rows::Tokens,
    }
}
