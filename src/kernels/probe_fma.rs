//! The multiply-adds that measure arithmetic; see `shaders/probe_fma.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};

params! {
    /// Params of [`PROBE_FMA`].
    ProbeFmaParams { width: u32 }
}

kernel!(PROBE_FMA, "probe_fma", ProbeFmaParams, [x: Read, y: Write], variants);

/// Rounds of twelve multiply-adds that an invocation does.
const ROUNDS: u32 = 1024;

/// Operations (a multiply-add is two) for one value.
pub const FLOPS: u64 = 2 * 12 * ROUNDS as u64;

fn variants(caps: &Caps) -> Vec<Variant> {
    let numbers = [("WG", tuning::flat(caps)), ("ROUNDS", ROUNDS)];
    vec![Variant::new(&PROBE_FMA, &[Part::Step, Part::LaneThread], &numbers)]
}

/// Multiply-adds for `floats` results.
pub fn select(floats: usize, caps: &Caps) -> Dispatch {
    Dispatch {
        variant: variants(caps)[0],
        params: ProbeFmaParams { width: floats as u32 }.words(),
        grid: Grid::Flat { per_row: floats as u32, per_group: tuning::flat(caps) },
        rows: Rows::Tokens,
    }
}
