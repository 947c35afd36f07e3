//! Matrix times one or a few vectors on CPUs; see `shaders/gemv_lanes.wgsl`. Solves the problems
//! of [`gemv`](crate::kernels::gemv).

use crate::caps::Caps;
use crate::dtype::WeightFormat;
use crate::kernels::gemv::{Experts, Gemv, GemvParams, Out};
use crate::kernels::pack::Order;
use crate::kernels::tuning::{self, LanesShape};
use crate::kernels::{Dispatch, Part, Rows, Variant, kernel};
use crate::nonlinearity::Nonlinearity;

kernel!(
    GEMV_LANES,
    "gemv_lanes",
    GemvParams,
    [w: Read, scales: Read, x: Read, y: Write, routes: Read, bias: Read, gain: Read],
    variants
);

fn variant(shape: LanesShape, problem: &Gemv, caps: &Caps) -> Variant {
    let mut parts = problem.parts(Part::LaneSubgroup, Part::XStorage);
    parts.push(Part::lookup_together(problem.format, caps));
    let alone = Part::blocks(problem.format);
    parts.extend(alone);
    // What groups share stays from one to the next of the same rows, so that all rows are one turn there.
    let turn = alone.map_or(shape.rows, |_| tuning::turn(caps, problem.format, shape));
    let mut numbers = vec![("ROWS", shape.rows), ("TURN", turn), ("COLS", shape.cols), ("WG", shape.wg)];
    numbers.extend(problem.experts.iter().flat_map(Experts::numbers));
    Variant::new(&GEMV_LANES, &parts, &numbers)
}

fn variants(caps: &Caps) -> Vec<Variant> {
    if tuning::order(caps) != Order::Bundles {
        return Vec::new();
    }
    let mut all = Vec::new();
    for format in WeightFormat::ALL {
        for cols in [1, 8] {
            let shape = LanesShape { rows: 4, cols, wg: 8 };
            let norm = (cols == 1).then_some(1e-5);
            for (out, bias, norm, batch) in [
                (Out::Store, false, None, Rows::Tokens),
                (Out::Store, false, None, Rows::Outputs),
                (Out::Store, true, norm, Rows::Tokens),
                (Out::Add, true, None, Rows::Tokens),
                (Out::Glu(Nonlinearity::Silu), false, norm, Rows::Tokens),
            ] {
                let max_batch = cols as usize;
                let problem =
                    Gemv { format, order: Order::Bundles, out, bias, norm, batch, max_batch, ..Gemv::SMALL };
                all.push(variant(shape, &problem, caps));
            }
            let size = (cols > 1).then_some(cols as usize);
            let plain = Gemv { format, order: Order::Bundles, ..Gemv::SMALL };
            all.extend(plain.of_experts(size).iter().map(|p| variant(shape, p, caps)));
        }
    }
    all
}

/// The dispatch of `problem` with a given division of work.
pub fn dispatch(problem: &Gemv, shape: LanesShape, caps: &Caps) -> Dispatch {
    let groups = (problem.rows as u32).div_ceil(shape.rows * shape.wg);
    let (grid, rows) = problem.grid(groups, shape.cols);
    Dispatch { variant: variant(shape, problem, caps), params: problem.params().words(), grid, rows }
}

/// On the lanes of a CPU, for which rows lie in bundles.
pub fn select(problem: &Gemv, caps: &Caps) -> Dispatch {
    let shape = tuning::lanes(problem.max_batch);
    // Experts' rows come one by one, or in groups of as many as there are columns.
    let cols = problem.experts.map_or(shape.cols, |e| e.size.map_or(1, |_| shape.cols));
    dispatch(problem, LanesShape { cols, ..shape }, caps)
}
