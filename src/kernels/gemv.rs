//! Matrix times one or a few vectors; see `shaders/gemv.wgsl`.

use std::collections::HashSet;

use crate::caps::Caps;
use crate::dtype::{Activations, WeightFormat};
use crate::kernels::pack::Order;
use crate::kernels::tuning::{self, GemvShape};
use crate::kernels::{Dispatch, Grid, Part, Rows, Variant, kernel, params};
use crate::nonlinearity::Nonlinearity;
use crate::shape::{GROUP, MAX_COLS, padded};

params! {
    /// Params of [`GEMV`].
    GemvParams {
        groups: u32,
        rows: u32,
        pitch: u32,
        first: u32,
        stride: u32,
        width: f32,
        eps: f32,
        matrix: u32,
        matrices: u32,
        each: u32,
    }
}

kernel!(GEMV, "gemv", GemvParams, [w: Read, scales: Read, x: Read, y: Write, routes: Read, bias: Read, gain: Read], variants);

/// What becomes of a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// It is the output.
    Store,
    /// It is added to the output.
    Add,
    /// Alternating gates and ups become one output.
    Glu(Nonlinearity),
}

impl Out {
    /// All, for enumeration: each makes another variant.
    pub const ALL: [Self; 5] = [
        Self::Store,
        Self::Add,
        Self::Glu(Nonlinearity::Silu),
        Self::Glu(Nonlinearity::GeluTanh),
        Self::Glu(Nonlinearity::Gelu),
    ];

    /// The part that does it.
    pub fn part(self) -> Part {
        match self {
            Self::Store => Part::OutStore,
            Self::Add => Part::OutAdd,
            Self::Glu(act) => Part::OutGlu(act),
        }
    }
}

/// The experts' matrices of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts in all, also those of other shards.
    pub all: usize,
    /// Experts that a token chose.
    pub chosen: usize,
    /// Whether those of a token read the same row of x.
    pub shared: bool,
    /// The first expert of the shard.
    pub first: usize,
    /// How many it has.
    pub count: usize,
    /// Rows from one's matrix to the next's.
    pub each: usize,
    /// The most rows that share the weights of an expert, in groups that
    /// [`group`](crate::kernels::group) makes; a row at a time without.
    pub size: Option<usize>,
}

impl Experts {
    /// The numbers that the kernels are told.
    pub(super) fn numbers(&self) -> [(&'static str, u32); 2] {
        [("CHOSEN", self.chosen as u32), ("SHARE", if self.shared { self.chosen as u32 } else { 1 })]
    }
}

/// One shard of a matrix times the rows of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Gemv {
    /// Storage format of the shard.
    pub format: WeightFormat,
    /// Order of its groups: who lays them in bundles gets `gemv_lanes`.
    pub order: Order,
    /// Inputs: columns of the matrix.
    pub inputs: usize,
    /// Width of a row of the result.
    pub outputs: usize,
    /// Rows of the shard, with those that fill the padding of the result.
    pub rows: usize,
    /// Output of the shard's first row.
    pub first: usize,
    /// Outputs from one row to the next.
    pub stride: usize,
    /// What becomes of the sums.
    pub out: Out,
    /// The epsilon of the normalisation on the way in, if there is one: for one token only.
    pub norm: Option<f32>,
    /// How activations may be rounded.
    pub activations: Activations,
    /// The part that makes floats of bytes: see [`tuning::bytes`].
    pub bytes: Part,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whose matrices these are, if they are experts'.
    pub experts: Option<Experts>,
    /// Which rows of the batch.
    pub batch: Rows,
    /// The most rows that the batch may have.
    pub max_batch: usize,
}

impl Gemv {
    /// A small problem, of which variants are listed.
    pub(super) const SMALL: Self = Self {
        format: WeightFormat::F32,
        order: Order::Rows,
        inputs: 64,
        outputs: 64,
        rows: 64,
        first: 0,
        stride: 1,
        out: Out::Store,
        norm: None,
        activations: Activations::F32,
        bytes: Part::BytesUnpack,
        bias: false,
        experts: None,
        batch: Rows::Tokens,
        max_batch: 1,
    };

    /// The parts of the mat-vecs, which all link the same families.
    pub(super) fn parts(&self, lane: Part, x: Part) -> Vec<Part> {
        vec![
            Part::Step,
            Part::rows(self.batch),
            lane,
            Part::Weight(self.format),
            self.bytes,
            self.order.part(),
            x,
            if self.norm.is_some() { Part::NormRms } else { Part::NormNone },
            self.out.part(),
            if self.bias { Part::BiasVector } else { Part::BiasNone },
            self.matrix_part(),
        ]
    }

    pub(super) fn matrix_part(&self) -> Part {
        match self.experts {
            None => Part::MatrixOne,
            Some(Experts { size: None, .. }) => Part::MatrixChosen,
            Some(Experts { size: Some(_), .. }) => Part::MatrixGrouped,
        }
    }

    /// Small problems for experts, one of them grouped where a kernel can have that.
    pub(super) fn of_experts(self, size: Option<usize>) -> Vec<Self> {
        let experts = Experts { all: 4, chosen: 2, shared: true, first: 0, count: 4, each: self.rows, size };
        let silu = Out::Glu(Nonlinearity::Silu);
        [(true, Out::Store), (true, silu), (false, Out::Store)]
            .map(|(shared, out)| Self { experts: Some(Experts { shared, ..experts }), out, ..self })
            .to_vec()
    }

    /// The grid of `groups` workgroups for a layer of `cols` rows, and its rows.
    pub(super) fn grid(&self, groups: u32, cols: u32) -> (Grid, Rows) {
        match self.experts {
            None => (Grid::Layers { groups, cols }, self.batch),
            Some(Experts { size: None, chosen, .. }) => {
                (Grid::Layers { groups, cols }, Rows::Chosen(chosen as u32))
            }
            Some(Experts { size: Some(size), all, chosen, .. }) => {
                let experts = all as u32;
                (Grid::Grouped { groups, experts, size: size as u32 }, Rows::Chosen(chosen as u32))
            }
        }
    }

    pub(super) fn params(&self) -> GemvParams {
        GemvParams {
            groups: self.inputs.div_ceil(GROUP) as u32,
            rows: self.rows as u32,
            pitch: padded(self.outputs) as u32,
            first: self.first as u32,
            stride: self.stride as u32,
            width: self.inputs as f32,
            eps: self.norm.unwrap_or(0.0),
            matrix: self.experts.map_or(0, |e| e.first as u32),
            matrices: self.experts.map_or(1, |e| e.count as u32),
            each: self.experts.map_or(0, |e| e.each as u32),
        }
    }
}

/// Vectors of four that a uniform binding of the activations holds, for whole layers of
/// columns; in thousands, so that few lengths, and so few pipelines, are in use.
pub(super) fn uniform_vectors(problem: &Gemv, cols: u32) -> usize {
    let rows = problem.max_batch.next_multiple_of(cols as usize);
    (rows * padded(problem.inputs) / 4).next_multiple_of(1024)
}

/// Whether they fit one; rows of experts do not lie together.
pub(super) fn fits_uniform(problem: &Gemv, cols: u32, caps: &Caps) -> bool {
    problem.experts.is_none() && uniform_vectors(problem, cols) as u64 * 16 <= caps.max_uniform_binding
}

fn variant(shape: GemvShape, problem: &Gemv) -> Variant {
    let x4 = uniform_vectors(problem, shape.cols) as u32;
    let mut parts = problem.parts(shape.lane, if shape.uniform { Part::XUniform } else { Part::XStorage });
    parts.extend([Part::lookup(problem.format), Part::FourRows]);
    let mut numbers = vec![("ROWS", shape.rows), ("COLS", shape.cols), ("WG", shape.wg)];
    numbers.extend(shape.uniform.then_some(("X4", x4)));
    numbers.extend(problem.experts.iter().flat_map(Experts::numbers));
    Variant::new(&GEMV, &parts, &numbers)
}

fn variants(caps: &Caps) -> Vec<Variant> {
    let mut all = Vec::new();
    for format in WeightFormat::ALL {
        // One column for each small batch, and what larger ones get.
        for max_batch in 1..=MAX_COLS + 1 {
            let plain = Gemv { format, max_batch, bytes: tuning::bytes(caps), ..Gemv::SMALL };
            let mut problems = vec![Gemv { batch: Rows::Outputs, ..plain }];
            for out in Out::ALL {
                for bias in [false, true] {
                    problems.push(Gemv { out, bias, ..plain });
                    if tuning::norm_prologue(caps, max_batch) {
                        problems.push(Gemv { out, bias, norm: Some(1e-5), ..plain });
                    }
                }
            }
            if max_batch == 1 {
                problems.extend(plain.of_experts(None));
            }
            for problem in problems {
                let shape = shape(&problem, caps);
                all.push(variant(shape, &problem));
                if shape.uniform {
                    // Activations that exceed a uniform binding.
                    all.push(variant(GemvShape { uniform: false, ..shape }, &problem));
                }
            }
        }
    }
    let mut seen = HashSet::new();
    all.retain(|v| seen.insert(*v));
    all
}

/// The division of work for `problem`; activations that exceed a uniform binding come from
/// storage.
pub fn shape(problem: &Gemv, caps: &Caps) -> GemvShape {
    let mut shape = tuning::gemv(caps, problem.max_batch, problem.norm.is_some());
    if problem.experts.is_some() {
        // Neighbouring rows have other experts.
        shape = GemvShape { cols: 1, ..shape };
    }
    shape.uniform &= fits_uniform(problem, shape.cols, caps);
    shape
}

/// Teams of a few rows; see [`tuning::gemv`] for who is a team.
pub fn select(problem: &Gemv, caps: &Caps) -> Dispatch {
    let shape = shape(problem, caps);
    dispatch(problem, shape, caps)
}

/// The dispatch of `problem` with a given division of work.
pub fn dispatch(problem: &Gemv, shape: GemvShape, caps: &Caps) -> Dispatch {
    // With the largest subgroups a workgroup holds the fewest teams; smaller ones find their
    // rows taken and stop. Teams walk the rows with the stride of the grid in any case.
    let teams_per_group = match shape.lane {
        Part::LaneThread => shape.wg,
        Part::LaneSubgroup => (shape.wg / caps.subgroup.map_or(shape.wg, |(_, max)| max)).max(1),
        _ => 1,
    };
    let groups = (problem.rows as u32).div_ceil(shape.rows * teams_per_group);
    let (grid, rows) = problem.grid(groups, shape.cols);
    Dispatch { variant: variant(shape, problem), params: problem.params().words(), grid, rows }
}
