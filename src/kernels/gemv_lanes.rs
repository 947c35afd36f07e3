//! Matrix times one or a few vectors on CPUs; see `shaders/gemv_lanes.wgsl`. Solves the problems
//! of [`gemv`](crate::kernels::gemv).

use crate::caps::Caps;
use crate::dtype::WeightFormat;
use crate::kernels::gemv::{Experts, Gemv, GemvParams, Out, fits_uniform, uniform_vectors};
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

fn variant(shape: LanesShape, problem: &Gemv, uniform: bool, caps: &Caps) -> Variant {
    let mut parts = problem.parts(Part::LaneSubgroup, if uniform { Part::XUniform } else { Part::XStorage });
    parts.push(Part::lookup_together(problem.format, caps));
    parts.push(Part::lanes(problem.format));
    let turn = tuning::turn(caps, problem.format, shape);
    // Those that share the loads of x, of any subgroup.
    let lanes = if caps.subgroup.is_some_and(|(least, _)| least >= 8) { 8 } else { 4 };
    let mut numbers =
        vec![("ROWS", shape.rows), ("TURN", turn), ("COLS", shape.cols), ("WG", shape.wg), ("LANES", lanes)];
    numbers.extend(uniform.then(|| ("X4", uniform_vectors(problem, shape.cols) as u32)));
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
                all.extend([true, false].map(|uniform| variant(shape, &problem, uniform, caps)));
            }
            let size = (cols > 1).then_some(cols as usize);
            let plain = Gemv { format, order: Order::Bundles, ..Gemv::SMALL };
            all.extend(plain.of_experts(size).iter().map(|p| variant(shape, p, false, caps)));
        }
    }
    all
}

/// The dispatch of `problem` with a given division of work.
pub fn dispatch(problem: &Gemv, shape: LanesShape, caps: &Caps) -> Dispatch {
    let groups = (problem.rows as u32).div_ceil(shape.rows * shape.wg);
    let (grid, rows) = problem.grid(groups, shape.cols);
    Dispatch {
        variant: variant(shape, problem, fits_uniform(problem, shape.cols, caps), caps),
        params: problem.params().words(),
        grid,
        rows,
    }
}

/// On the lanes of a CPU, for which rows lie in bundles.
pub fn select(problem: &Gemv, caps: &Caps) -> Dispatch {
    let shape = tuning::lanes(problem.max_batch);
    // Experts' rows come one by one, or in groups of as many as there are columns.
    let cols = problem.experts.map_or(shape.cols, |e| e.size.map_or(1, |_| shape.cols));
    dispatch(problem, LanesShape { cols, ..shape }, caps)
}
