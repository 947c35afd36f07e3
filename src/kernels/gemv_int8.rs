//! Matrix times one or a few vectors of bytes; see `shaders/gemv_int8.wgsl`. Solves the problems
//! of [`gemv`] less exactly, where the user asks for that.

use std::collections::HashSet;

use crate::caps::Caps;
use crate::dtype::{Activations, WeightFormat};
use crate::kernels::gemv::{self, Gemv, GemvParams, Out};
use crate::kernels::pack::Order;
use crate::kernels::tuning::{self, GemvShape};
use crate::kernels::{Dispatch, Part, Rows, Variant, kernel};
use crate::nonlinearity::Nonlinearity;
use crate::shape::MAX_COLS;

kernel!(
    GEMV_INT8,
    "gemv_int8",
    GemvParams,
    [w: Read, scales: Read, x: Read, y: Write, routes: Read, bias: Read, gain: Read],
    variants
);

/// Whether the weights come as bytes.
fn has_bytes(format: WeightFormat) -> bool {
    matches!(format, WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4_1 | WeightFormat::U4)
}

fn variant(shape: GemvShape, problem: &Gemv) -> Variant {
    let parts = problem.parts(shape.lane, Part::XStorage);
    Variant::new(&GEMV_INT8, &parts, &[("ROWS", shape.rows), ("COLS", shape.cols), ("WG", shape.wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    if !tuning::multiplies_bytes(caps) {
        return Vec::new();
    }
    let mut seen = HashSet::new();
    let mut all = Vec::new();
    for format in WeightFormat::ALL.into_iter().filter(|f| has_bytes(*f)) {
        for max_batch in 1..=MAX_COLS {
            let (activations, bytes) = (Activations::Int8, tuning::bytes(caps));
            let plain = Gemv { format, max_batch, activations, bytes, ..Gemv::SMALL };
            let norm = tuning::norm_prologue(caps, max_batch).then_some(1e-5);
            let problems = [
                Gemv { batch: Rows::Outputs, ..plain },
                Gemv { norm, ..plain },
                Gemv { norm, bias: true, ..plain },
                Gemv { out: Out::Add, ..plain },
                Gemv { norm, out: Out::Glu(Nonlinearity::Silu), ..plain },
            ];
            all.extend(problems.iter().map(|p| variant(shape(p, caps), p)));
        }
    }
    all.retain(|v| seen.insert(*v));
    all
}

/// As that of `gemv`. With one column the rounding of activations is shared by eight rows.
fn shape(problem: &Gemv, caps: &Caps) -> GemvShape {
    let shape = tuning::gemv(caps, problem.max_batch, problem.norm.is_some());
    GemvShape { rows: if shape.cols == 1 { 8 } else { 4 }, uniform: false, ..shape }
}

/// If the activations may be rounded, the weights are integers, and the tokens are few.
pub fn select(problem: &Gemv, caps: &Caps) -> Option<Dispatch> {
    let wanted = problem.activations == Activations::Int8 && problem.order == Order::Rows;
    let few = problem.max_batch <= MAX_COLS;
    (wanted && few && has_bytes(problem.format) && tuning::multiplies_bytes(caps)).then(|| {
        let shape = shape(problem, caps);
        Dispatch { variant: variant(shape, problem), ..gemv::dispatch(problem, shape, caps) }
    })
}
