//! Normalisation about the mean; see `shaders/layer_norm.wgsl`.

use crate::caps::Caps;
use crate::kernels::rms_norm::{self, RmsNorm, RmsNormParams};
use crate::kernels::{Dispatch, Variant, kernel};

kernel!(LAYER_NORM, "layer_norm", RmsNormParams, [x: Read, w: Read, b: Read, y: Write], variants);

fn variants(caps: &Caps) -> Vec<Variant> {
    rms_norm::all_variants(&LAYER_NORM, caps)
}

/// One workgroup a row.
pub fn select(problem: &RmsNorm, caps: &Caps) -> Dispatch {
    rms_norm::dispatch(&LAYER_NORM, problem, caps)
}
