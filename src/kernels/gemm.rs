//! Matrix times many vectors; see `shaders/gemm.wgsl`. Solves the problems of
//! [`gemv`](crate::kernels::gemv) where there are tokens enough to fill tiles.

use crate::caps::Caps;
use crate::dtype::WeightFormat;
use crate::kernels::gemv::{Gemv, Out};
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::{GROUP, padded};

params! {
    /// Params of [`GEMM`].
    GemmParams { groups: u32, rows: u32, pitch: u32, first: u32, stride: u32 }
}

kernel!(GEMM, "gemm", GemmParams, [w: Read, scales: Read, x: Read, y: Write, bias: Read], variants);

/// Size of a tile, in 32 tokens and 32 rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Tokens.
    pub tokens: u32,
    /// Rows.
    pub rows: u32,
}

fn variant(tile: Tile, problem: &Gemv) -> Variant {
    let parts = [
        Part::Step,
        Part::rows(problem.batch),
        Part::LaneWorkgroup,
        Part::Weight(problem.format),
        Part::XStorage,
        problem.out.part(),
        if problem.bias { Part::BiasVector } else { Part::BiasNone },
    ];
    Variant::new(&GEMM, &parts, &[("WG", 64), ("FM", tile.tokens), ("FN", tile.rows)])
}

fn variants(_: &Caps) -> Vec<Variant> {
    let mut all = Vec::new();
    for format in WeightFormat::ALL {
        for tile in tuning::TILES {
            for out in [Out::Store, Out::Add, Out::Swiglu] {
                for (bias, batch) in [(false, Rows::Tokens), (true, Rows::Tokens), (false, Rows::Outputs)] {
                    let problem = Gemv {
                        format,
                        inputs: 64,
                        outputs: 64,
                        rows: 64,
                        first: 0,
                        stride: 1,
                        out,
                        norm: None,
                        bias,
                        batch,
                        max_batch: 64,
                    };
                    all.push(variant(tile, &problem));
                }
            }
        }
    }
    all
}

/// The dispatch of `problem` in tiles of a given size.
pub fn dispatch(problem: &Gemv, tile: Tile) -> Dispatch {
    let params = GemmParams {
        groups: problem.inputs.div_ceil(GROUP) as u32,
        rows: problem.rows as u32,
        pitch: padded(problem.outputs) as u32,
        first: problem.first as u32,
        stride: problem.stride as u32,
    };
    Dispatch {
        variant: variant(tile, problem),
        params: params.words(),
        grid: Grid::Layers { groups: (problem.rows as u32).div_ceil(32 * tile.rows), cols: 32 * tile.tokens },
        rows: problem.batch,
    }
}

/// In tiles, if the adapter and the batch are for it.
pub fn select(problem: &Gemv, caps: &Caps) -> Option<Dispatch> {
    let tile = tuning::gemm(caps, problem.max_batch, problem.rows)?;
    problem.norm.is_none().then(|| dispatch(problem, tile))
}
