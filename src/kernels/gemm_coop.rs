//! Matrix times many vectors by matrix units; see `shaders/gemm_coop.wgsl`. Solves the problems
//! of [`gemm`](crate::kernels::gemm) where the adapter has cooperative matrices.

use crate::caps::Caps;
use crate::kernels::gemm::{GemmParams, params, problems};
use crate::kernels::gemv::{Experts, Gemv};
use crate::kernels::{Dispatch, Part, Variant, kernel, tuning};
use crate::shape::GROUP;

kernel!(GEMM_COOP, "gemm_coop", GemmParams, [w: Read, scales: Read, x: Read, y: Write, routes: Read, bias: Read], variants);

/// The tile of a workgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoopTile {
    /// Rows, a multiple of 32.
    pub rows: u32,
    /// Tokens, a multiple of 32.
    pub cols: u32,
}

impl CoopTile {
    /// Subgroups that work on it at the same time: each has 32 by 32 sums.
    pub const fn subgroups(self) -> u32 {
        self.rows / 32 * (self.cols / 32)
    }

    /// Bytes of workgroup memory: two groups of columns and eight more, as halves, of rows and
    /// tokens, and a matrix of sums for each subgroup.
    pub const fn memory(self, side: u32) -> u32 {
        (self.rows + self.cols) * (2 * GROUP as u32 + 8) * 2 + self.subgroups() * side * side * 4
    }
}

/// The part for matrices of `side`.
fn coop(side: u32) -> Part {
    if side == 8 { Part::Coop8 } else { Part::Coop16 }
}

fn variant(problem: &Gemv, tile: CoopTile, side: u32, wg: u32) -> Variant {
    let parts = [
        Part::Step,
        Part::rows(problem.batch),
        Part::LaneTileSubgroup,
        coop(side),
        Part::Weight(problem.format),
        Part::lookup(problem.format),
        problem.bytes,
        problem.order.part(),
        Part::XStorage,
        problem.out.part(),
        if problem.bias { Part::BiasVector } else { Part::BiasNone },
        problem.matrix_part(),
    ];
    let mut numbers = vec![("ROWS", tile.rows), ("COLS", tile.cols), ("WG", wg)];
    numbers.extend(problem.experts.iter().flat_map(Experts::numbers));
    Variant::new(&GEMM_COOP, &parts, &numbers)
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let Some(side) = caps.coop else { return Vec::new() };
    let of = |p: &Gemv, tile| variant(p, tile, side, tuning::coop_invocations(caps, tile, side));
    problems(caps).iter().flat_map(|p| tuning::COOP_TILES.map(|tile| of(p, tile))).collect()
}

/// The dispatch of `problem` in workgroups of `wg` invocations, its columns shared by `splits`
/// of them, with matrices of `side`.
pub fn dispatch(problem: &Gemv, splits: usize, tile: CoopTile, side: u32, wg: u32) -> Dispatch {
    let params = params(problem, splits);
    let tiles = params.rows.div_ceil(tile.rows);
    let (grid, rows) = problem.grid(tiles * params.splits, tile.cols);
    Dispatch { variant: variant(problem, tile, side, wg), params: params.words(), grid, rows }
}

/// By matrix units, if the adapter has them, the batch is for it, and halves will do.
pub fn select(problem: &Gemv, splits: usize, caps: &Caps) -> Option<Dispatch> {
    let side = tuning::matrix_units(caps, problem.activations)?;
    let tile =
        tuning::tiling(caps, problem.max_batch, problem.activations)?.coop(caps, problem.rows, splits, side);
    let tile = problem.experts.map_or(tile, |_| tuning::COOP_TILES[1]);
    let wg = tuning::coop_invocations(caps, tile, side);
    problem.norm.is_none().then(|| dispatch(problem, splits, tile, side, wg))
}
