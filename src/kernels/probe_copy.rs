//! The copy that measures bandwidth; see `shaders/probe_copy.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params};

params! {
    /// Params of [`PROBE_COPY`].
    ProbeCopyParams { quads: u32 }
}

kernel!(PROBE_COPY, "probe_copy", ProbeCopyParams, [x: Read, y: Write], variants);

/// Invocations of a workgroup: each does next to nothing.
const WG: u32 = 256;

fn variants(_: &Caps) -> Vec<Variant> {
    vec![Variant::new(&PROBE_COPY, &[Part::Step, Part::LaneThread], &[("WG", WG)])]
}

/// A copy of `floats` values.
pub fn select(floats: usize, caps: &Caps) -> Dispatch {
    let quads = floats as u32 / 4;
    Dispatch {
        variant: variants(caps)[0],
        params: ProbeCopyParams { quads }.words(),
        grid: Grid::Flat { per_row: quads, per_group: WG },
        rows: Rows::Tokens,
    }
}
