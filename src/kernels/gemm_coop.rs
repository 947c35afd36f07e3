//! Matrix times many vectors by matrix units; see `shaders/gemm_coop.wgsl`. Solves the problems
//! of [`gemm`](crate::kernels::gemm) where the adapter has cooperative matrices.

use crate::caps::Caps;
use crate::kernels::gemm::{GemmParams, params, problems};
use crate::kernels::gemv::Gemv;
use crate::kernels::{Dispatch, Grid, Part, Variant, kernel, tuning};

kernel!(GEMM_COOP, "gemm_coop", GemmParams, [w: Read, scales: Read, x: Read, y: Write, bias: Read], variants);

/// Tokens and rows of a tile.
const TILE: u32 = 64;

/// The part for matrices of `side`.
fn coop(side: u32) -> Part {
    if side == 8 { Part::Coop8 } else { Part::Coop16 }
}

fn variant(problem: &Gemv, side: u32, wg: u32) -> Variant {
    let parts = [
        Part::Step,
        Part::rows(problem.batch),
        Part::LaneTileSubgroup,
        coop(side),
        Part::Weight(problem.format),
        problem.order.part(),
        Part::XStorage,
        problem.out.part(),
        if problem.bias { Part::BiasVector } else { Part::BiasNone },
    ];
    Variant::new(&GEMM_COOP, &parts, &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let Some(side) = caps.coop else { return Vec::new() };
    problems().iter().map(|p| variant(p, side, tuning::coop_invocations(caps, side))).collect()
}

/// The dispatch of `problem` in workgroups of `wg` invocations, its columns shared by `splits`
/// of them, with matrices of `side`.
pub fn dispatch(problem: &Gemv, splits: usize, side: u32, wg: u32) -> Dispatch {
    let params = params(problem, splits);
    let tiles = params.rows.div_ceil(TILE);
    Dispatch {
        variant: variant(problem, side, wg),
        params: params.words(),
        grid: Grid::Layers { groups: tiles * params.splits, cols: TILE },
        rows: problem.batch,
    }
}

/// By matrix units, if the adapter has them and the batch is for it.
pub fn select(problem: &Gemv, splits: usize, caps: &Caps) -> Option<Dispatch> {
    let side = caps.coop?;
    tuning::tiling(caps, problem.max_batch)?;
    let wg = tuning::coop_invocations(caps, side);
    problem.norm.is_none().then(|| dispatch(problem, splits, side, wg))
}
