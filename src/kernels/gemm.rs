//! Matrix times many vectors; see `shaders/gemm.wgsl`. Solves the problems of
//! [`gemv`](crate::kernels::gemv) where there are tokens enough to fill tiles.

use crate::caps::Caps;
use crate::dtype::WeightFormat;
use crate::kernels::gemv::{Experts, Gemv, Out};
use crate::kernels::{Dispatch, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::{GROUP, padded};

params! {
    /// Params of [`GEMM`].
    GemmParams {
        groups: u32,
        rows: u32,
        pitch: u32,
        first: u32,
        stride: u32,
        splits: u32,
        part: u32,
        matrix: u32,
        matrices: u32,
        each: u32,
    }
}

kernel!(GEMM, "gemm", GemmParams, [w: Read, scales: Read, x: Read, y: Write, routes: Read, bias: Read], variants);

/// A square tile of tokens and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Invocations along a side.
    pub side: u32,
    /// Tokens and rows of an invocation; a multiple of four.
    pub each: u32,
}

impl Tile {
    /// Tokens, and rows.
    pub const fn size(self) -> u32 {
        self.side * self.each
    }

    /// Invocations.
    pub const fn invocations(self) -> u32 {
        self.side * self.side
    }
}

fn variant(tile: Tile, problem: &Gemv) -> Variant {
    let parts = [
        Part::Step,
        Part::rows(problem.batch),
        Part::LaneTile,
        Part::Weight(problem.format),
        Part::lookup(problem.format),
        problem.bytes,
        problem.order.part(),
        Part::XStorage,
        problem.out.part(),
        if problem.bias { Part::BiasVector } else { Part::BiasNone },
        problem.matrix_part(),
    ];
    let mut numbers = vec![("WG", tile.invocations()), ("SIDE", tile.side), ("FRAG", tile.each)];
    numbers.extend(problem.experts.iter().flat_map(Experts::numbers));
    Variant::new(&GEMM, &parts, &numbers)
}

/// Problems of every kind that makes another variant.
pub(super) fn problems(caps: &Caps) -> Vec<Gemv> {
    let bytes = tuning::bytes(caps);
    let mut all = Vec::new();
    for format in WeightFormat::ALL {
        for out in Out::ALL {
            for (bias, batch) in [(false, Rows::Tokens), (true, Rows::Tokens), (false, Rows::Outputs)] {
                all.push(Gemv { format, out, bias, batch, max_batch: 64, bytes, ..Gemv::SMALL });
            }
        }
        all.extend(Gemv { format, max_batch: 64, bytes, ..Gemv::SMALL }.of_experts(Some(64)));
    }
    all
}

fn variants(caps: &Caps) -> Vec<Variant> {
    problems(caps).iter().flat_map(|p| tuning::TILES.map(|tile| variant(tile, p))).collect()
}

/// What a tiled product is told, its columns shared by `splits` workgroups. With more than one,
/// y has a part for each, to be merged by [`gemm_merge`](crate::kernels::gemm_merge).
pub(super) fn params(problem: &Gemv, splits: usize) -> GemmParams {
    let part = padded(problem.outputs);
    GemmParams {
        groups: problem.inputs.div_ceil(GROUP) as u32,
        rows: problem.rows as u32,
        pitch: (part * splits) as u32,
        first: problem.first as u32,
        stride: problem.stride as u32,
        splits: splits as u32,
        part: part as u32,
        matrix: problem.experts.map_or(0, |e| e.first as u32),
        matrices: problem.experts.map_or(1, |e| e.count as u32),
        each: problem.experts.map_or(0, |e| e.each as u32),
    }
}

/// The dispatch of `problem` in tiles of a given size, its columns shared by `splits`
/// workgroups.
pub fn dispatch(problem: &Gemv, tile: Tile, splits: usize) -> Dispatch {
    let params = params(problem, splits);
    let tiles = params.rows.div_ceil(tile.size());
    let (grid, rows) = problem.grid(tiles * params.splits, tile.size());
    Dispatch { variant: variant(tile, problem), params: params.words(), grid, rows }
}

/// In tiles, if the adapter and the batch are for it.
pub fn select(problem: &Gemv, splits: usize, caps: &Caps) -> Option<Dispatch> {
    let tile = tuning::tiling(caps, problem.max_batch, problem.activations)?.tile(problem.rows, splits);
    let tile = problem.experts.map_or(tile, |_| tuning::EXPERT_TILE);
    problem.norm.is_none().then(|| dispatch(problem, tile, splits))
}
