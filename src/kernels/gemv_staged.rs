//! Matrix times one vector whose elements meet in workgroup memory; see
//! `shaders/gemv_staged.wgsl`. Solves the problems of [`gemv`](crate::kernels::gemv) for one
//! token where the adapter is a GPU with subgroups.

use crate::caps::Caps;
use crate::dtype::WeightFormat;
use crate::kernels::gemv::{Experts, Gemv, GemvParams, Out};
use crate::kernels::{Dispatch, Part, Rows, Variant, kernel, tuning};

kernel!(
    GEMV_STAGED,
    "gemv_staged",
    GemvParams,
    [w: Read, scales: Read, x: Read, y: Write, routes: Read, bias: Read, gain: Read],
    variants
);

/// Rows of a team.
const ROWS: u32 = 4;

fn variant(problem: &Gemv, wg: u32, caps: &Caps) -> Variant {
    let mut parts = problem.parts(Part::LaneTeams, Part::XStorage);
    // The most lanes that a subgroup may have.
    let span = caps.subgroup.map_or(wg, |(_, most)| most);
    parts.extend([Part::lookup_together(problem.format, caps), Part::groups(problem.format)]);
    let mut numbers = vec![("SPAN", span), ("WG", wg)];
    numbers.extend(problem.experts.iter().flat_map(Experts::numbers));
    Variant::new(&GEMV_STAGED, &parts, &numbers)
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let Some(wg) = tuning::staged(caps) else { return Vec::new() };
    let mut all = Vec::new();
    for format in WeightFormat::ALL {
        let plain = Gemv { format, bytes: tuning::bytes(caps), ..Gemv::SMALL };
        all.push(variant(&Gemv { batch: Rows::Outputs, ..plain }, wg, caps));
        all.extend(plain.of_experts(None).iter().map(|p| variant(p, wg, caps)));
        for out in Out::ALL {
            for (bias, norm) in [(false, None), (true, None), (false, Some(1e-5)), (true, Some(1e-5))] {
                all.push(variant(&Gemv { out, bias, norm, ..plain }, wg, caps));
            }
        }
    }
    all
}

/// The dispatch of `problem` in workgroups of `wg` invocations.
pub fn dispatch(problem: &Gemv, wg: u32, caps: &Caps) -> Dispatch {
    // With the largest subgroups a workgroup holds the fewest teams; smaller ones find their
    // rows taken and stop.
    let teams = (wg / caps.subgroup.map_or(wg, |(_, most)| most)).max(1);
    let (grid, rows) = problem.grid((problem.rows as u32).div_ceil(ROWS * teams), 1);
    Dispatch { variant: variant(problem, wg, caps), params: problem.params().words(), grid, rows }
}

/// If there is one token, and the adapter is for it.
pub fn select(problem: &Gemv, caps: &Caps) -> Option<Dispatch> {
    let wg = tuning::staged(caps)?;
    (problem.max_batch == 1).then(|| dispatch(problem, wg, caps))
}
