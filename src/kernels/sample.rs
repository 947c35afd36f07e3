//! The choice of the next token; see `shaders/sample.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::padded;

params! {
    /// Params of [`SAMPLE`] and of [`SAMPLE_SCAN`](crate::kernels::sample_scan::SAMPLE_SCAN).
    SampleParams { vocab: u32, pitch: u32, runs: u32 }
}

impl SampleParams {
    pub(super) fn new(vocab: usize, caps: &Caps) -> Self {
        Self { vocab: vocab as u32, pitch: padded(vocab) as u32, runs: runs(vocab, caps) as u32 }
    }
}

kernel!(
    SAMPLE,
    "sample",
    SampleParams,
    [v: Read, tops: Read, choices: Read, counts: Write, next: Write],
    variants
);

/// How the next token of a sequence is chosen, as `shaders/parts/choice.wgsl` reads it.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Choice {
    /// Factor of the logits: 1 / temperature.
    pub scale: f32,
    /// Only so many of the largest stay; 0 keeps all.
    pub top_k: u32,
    /// Only the largest that together have this probability stay; 1 keeps all.
    pub top_p: f32,
    /// Scaled logits more than this below the largest are never chosen.
    pub cut: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens that were seen.
    pub repetition: f32,
    /// Taken off the logits of tokens that were generated.
    pub presence: f32,
    /// Taken off as often as a token was generated.
    pub frequency: f32,
    /// [`CHANCE`](Self::CHANCE) and [`PENALTIES`](Self::PENALTIES).
    pub flags: u32,
    /// Key of the generator.
    pub seed: [u32; 2],
}

impl Choice {
    /// The likeliest.
    pub const GREEDY: Self = Self {
        scale: 1.0,
        top_k: 0,
        top_p: 1.0,
        cut: 32.0,
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        flags: 0,
        seed: [0; 2],
    };
    /// Flag: by chance; the likeliest otherwise.
    pub const CHANCE: u32 = 1;
    /// Flag: the penalties count.
    pub const PENALTIES: u32 = 2;
    /// Of a count: the token is part of the prompt.
    pub const IN_PROMPT: u32 = 1 << 31;
    /// The id that stands for logits that are no numbers.
    pub const NOT_A_NUMBER: u32 = u32::MAX;
}

/// Runs that the values of a row are dealt to: some 16 values each, in whole workgroups.
pub fn runs(vocab: usize, caps: &Caps) -> usize {
    vocab.div_ceil(16).next_multiple_of(tuning::flat(caps) as usize)
}

fn variant(lane: Part, wg: u32) -> Variant {
    Variant::new(&SAMPLE, &[Part::Step, lane, Part::Choice], &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let mut lanes = vec![Part::LaneWorkgroup];
    if caps.subgroup.is_some() {
        lanes.push(Part::LaneWorkgroupSubgroup);
    }
    lanes.into_iter().map(|lane| variant(lane, tuning::sample(caps))).collect()
}

/// One workgroup for an output.
pub fn select(vocab: usize, caps: &Caps) -> Dispatch {
    Dispatch {
        variant: variant(tuning::workgroup_lane(caps), tuning::sample(caps)),
        params: SampleParams::new(vocab, caps).words(),
        grid: Grid::PerRow { groups: 1, splits: 1 },
        rows: Rows::Outputs,
    }
}
