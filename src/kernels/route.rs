//! The choice of experts; see `shaders/route.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::shape::padded;

params! {
    /// Params of [`ROUTE`].
    RouteParams { normalised: u32, pitch: u32, y_pitch: u32 }
}

kernel!(ROUTE, "route", RouteParams, [x: Read, y: Write], variants);

fn variant(lane: Part, experts: usize, chosen: usize) -> Variant {
    let numbers = [("WG", 64), ("EXPERTS", experts as u32), ("CHOSEN", chosen as u32)];
    Variant::new(&ROUTE, &[Part::Step, lane], &numbers)
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let mut lanes = vec![Part::LaneWorkgroup];
    if caps.subgroup.is_some() {
        lanes.push(Part::LaneWorkgroupSubgroup);
    }
    lanes
        .into_iter()
        .flat_map(|lane| [(8, 2), (128, 8)].map(|(experts, chosen)| variant(lane, experts, chosen)))
        .collect()
}

/// One workgroup a token, which chooses `chosen` of `experts` experts.
pub fn select(experts: usize, chosen: usize, normalised: bool, caps: &Caps) -> Dispatch {
    let params = RouteParams {
        normalised: u32::from(normalised),
        pitch: padded(experts) as u32,
        y_pitch: padded(2 * chosen) as u32,
    };
    Dispatch {
        variant: variant(tuning::workgroup_lane(caps), experts, chosen),
        params: params.words(),
        grid: Grid::Flat { per_row: 1, per_group: 1 },
        rows: Rows::Tokens,
    }
}
