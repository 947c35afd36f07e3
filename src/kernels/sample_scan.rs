//! The logits of a step made ready for a choice; see `shaders/sample_scan.wgsl`.

use crate::caps::Caps;
use crate::kernels::sample::{self, SampleParams};
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, tuning};

kernel!(
    SAMPLE_SCAN,
    "sample_scan",
    SampleParams,
    [logits: Read, choices: Read, counts: Read, v: Write, tops: Write],
    variants
);

fn variant(wg: u32) -> Variant {
    Variant::new(&SAMPLE_SCAN, &[Part::Step, Part::LaneThread, Part::Choice], &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    vec![variant(tuning::flat(caps))]
}

/// Every invocation takes a run of the values of a row.
pub fn select(vocab: usize, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let groups = (sample::runs(vocab, caps) / wg as usize) as u32;
    Dispatch {
        variant: variant(wg),
        params: SampleParams::new(vocab, caps).words(),
        grid: Grid::PerRow { groups, splits: 1 },
        rows: Rows::Outputs,
    }
}
