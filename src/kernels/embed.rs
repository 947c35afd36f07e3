//! Rows of the embedding table; see `shaders/embed.wgsl`.

use crate::caps::Caps;
use crate::dtype::WeightFormat;
use crate::kernels::pack::Order;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};

params! {
    /// Params of [`EMBED`].
    EmbedParams { groups: u32, first_row: u32, rows: u32, scale: f32 }
}

kernel!(EMBED, "embed", EmbedParams, [w: Read, scales: Read, y: Write], variants);

/// One shard of the table.
#[derive(Debug, Clone, Copy)]
pub struct Embed {
    /// Storage format.
    pub format: WeightFormat,
    /// Order of its groups.
    pub order: Order,
    /// Width of a row, in values.
    pub width: usize,
    /// First row of the shard in the table.
    pub first_row: usize,
    /// Rows in the shard.
    pub rows: usize,
    /// Factor of the values.
    pub scale: f32,
}

fn variant(format: WeightFormat, order: Order, wg: u32) -> Variant {
    let parts = [
        Part::Step,
        Part::LaneThread,
        Part::Weight(format),
        Part::lookup(format),
        Part::BytesUnpack,
        order.part(),
    ];
    Variant::new(&EMBED, &parts, &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    WeightFormat::ALL.map(|format| variant(format, tuning::order(caps), tuning::flat(caps))).to_vec()
}

/// One invocation for 32 values.
pub fn select(problem: &Embed, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let groups = problem.width.div_ceil(crate::shape::GROUP) as u32;
    Dispatch {
        variant: variant(problem.format, problem.order, wg),
        params: EmbedParams {
            groups,
            first_row: problem.first_row as u32,
            rows: problem.rows as u32,
            scale: problem.scale,
        }
        .words(),
        grid: Grid::Flat { per_row: groups, per_group: wg },
        rows: Rows::Tokens,
    }
}
