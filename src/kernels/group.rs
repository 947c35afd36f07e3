//! Rows sorted by the experts that they chose; see `shaders/group.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, most_groups, params};

params! {
    /// Params of [`GROUP`].
    GroupParams { most: u32 }
}

kernel!(GROUP, "group", GroupParams, [routes: Read, groups: Write], variants);

/// Invocations.
const WG: u32 = 256;

fn variant(experts: usize, chosen: usize, size: usize) -> Variant {
    let sizes = [("EXPERTS", experts as u32), ("CHOSEN", chosen as u32), ("SIZE", size as u32)];
    let numbers = [&[("WG", WG)][..], &sizes].concat();
    Variant::new(&GROUP, &[Part::Step, Part::LaneWorkgroup], &numbers)
}

fn variants(_: &Caps) -> Vec<Variant> {
    [8, 32, 64].map(|size| variant(8, 2, size)).to_vec()
}

/// Words that the groups of `tokens` tokens take.
pub fn words(tokens: usize, experts: usize, chosen: usize, size: usize) -> usize {
    let rows = tokens * chosen;
    4 + 4 * most_groups(rows as u32, experts as u32, size as u32) as usize + rows
}

/// One workgroup for all of up to `tokens` tokens, of which each chose `chosen` of `experts` experts, in
/// groups of up to `size`.
pub fn select(tokens: usize, experts: usize, chosen: usize, size: usize) -> Dispatch {
    let most = most_groups((tokens * chosen) as u32, experts as u32, size as u32);
    Dispatch {
        variant: variant(experts, chosen, size),
        params: GroupParams { most }.words(),
        grid: Grid::Layers { groups: 1, cols: u32::MAX },
        rows: Rows::Tokens,
    }
}
