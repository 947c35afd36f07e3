//! A function of each value; see `shaders/activate.wgsl`.

use crate::caps::Caps;
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params, tuning};
use crate::nonlinearity::Nonlinearity;
use crate::shape::padded;

params! {
    /// Params of [`ACTIVATE`].
    ActivateParams { quads: u32, cap: f32 }
}

kernel!(ACTIVATE, "activate", ActivateParams, [x: Read, y: Write], variants);

/// A function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// Of a feed-forward part.
    Act(Nonlinearity),
    /// cap tanh(x / cap).
    SoftCap(f32),
}

fn variant(function: Function, rows: Rows, wg: u32) -> Variant {
    let act = match function {
        Function::Act(act) => Part::Act(act),
        Function::SoftCap(_) => Part::ActCap,
    };
    Variant::new(&ACTIVATE, &[Part::Step, Part::rows(rows), Part::LaneThread, act], &[("WG", wg)])
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let wg = tuning::flat(caps);
    let acts = Nonlinearity::ALL.map(|act| variant(Function::Act(act), Rows::Tokens, wg));
    acts.into_iter().chain([variant(Function::SoftCap(1.0), Rows::Outputs, wg)]).collect()
}

/// One invocation for four values of rows of `width`.
pub fn select(width: usize, function: Function, rows: Rows, caps: &Caps) -> Dispatch {
    let wg = tuning::flat(caps);
    let quads = padded(width) as u32 / 4;
    let cap = match function {
        Function::Act(_) => f32::MAX,
        Function::SoftCap(cap) => cap,
    };
    Dispatch {
        variant: variant(function, rows, wg),
        params: ActivateParams { quads, cap }.words(),
        grid: Grid::Flat { per_row: quads, per_group: wg },
        rows,
    }
}
