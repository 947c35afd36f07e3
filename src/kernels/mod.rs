//! The Rust halves of the kernels: declarations, variants, and the pure choice of a variant
//! and a grid for a problem on an adapter. Names no graphics API; `gpu` runs what is chosen
//! here. To add a kernel: `shaders/x.wgsl`, `x.rs` here, and a line in [`KERNELS`].

pub mod activate;
pub mod add;
pub mod attention;
pub mod attention_keys;
pub mod attention_merge;
pub mod attention_prefill;
pub mod combine;
pub mod embed;
pub mod gemm;
pub mod gemm_coop;
pub mod gemm_merge;
pub mod gemv;
pub mod gemv_int8;
pub mod gemv_lanes;
pub mod gemv_staged;
pub mod glu;
pub mod group;
pub mod head_norm;
pub mod layer_norm;
pub mod link;
pub mod pack;
pub mod permute;
pub mod probe_copy;
pub mod probe_fma;
pub mod rms_norm;
pub mod rope_kv;
pub mod route;
pub mod sample;
pub mod sample_scan;
pub mod tuning;
pub mod variant;

pub use variant::{Part, Variant};

use crate::caps::Caps;
pub use crate::shape::Rows;

/// Positions that one page of the KV cache holds.
pub const PAGE: usize = 64;

/// Pages that a layer with a `window` has for each sequence, used in turn: those that the window
/// touches, with up to `slack` positions that are written before they are attended to, or that are
/// given up again. None where all pages of a context are not more.
pub fn ring_pages(window: Option<usize>, slack: usize, context: usize) -> Option<usize> {
    let ring = window?.saturating_add(slack).div_ceil(PAGE) + 1;
    (ring < context.div_ceil(PAGE)).then_some(ring)
}

/// How a kernel uses a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    Write,
    /// `var<uniform>`
    Uniform,
}

/// One binding of group 0; its number is its place in the declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The variable's name in WGSL.
    pub name: &'static str,
    /// How it is used; a variant may read it through a uniform binding instead.
    pub access: Access,
}

/// A kernel's declaration: all that is said once about both of its halves.
///
/// Group 0 holds the bindings in order and then the params; group 1 holds the step.
pub struct KernelDecl {
    /// The stem of the shader and of the Rust file.
    pub name: &'static str,
    /// The WGSL body.
    pub source: &'static str,
    /// The bindings of group 0, without the params.
    pub bindings: &'static [Binding],
    /// Names and types of the params' members.
    pub params: &'static [(&'static str, &'static str)],
    /// Every variant that an adapter could run.
    pub variants: fn(&Caps) -> Vec<Variant>,
}

impl KernelDecl {
    /// Whether this is one of [`KERNELS`], and not a user's.
    pub fn is_ours(&'static self) -> bool {
        KERNELS.into_iter().any(|k| k == self)
    }
}

// A kernel is its declaration, wherever that lies: a user's may bear the name of ours.
impl PartialEq for KernelDecl {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for KernelDecl {}

impl std::hash::Hash for KernelDecl {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::ptr::from_ref(self).hash(state);
    }
}

impl std::fmt::Debug for KernelDecl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The size of a dispatch, as a function of the number of rows in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// `per_row` items for every row, `per_group` of them in one workgroup, in x and, where
    /// one dimension does not hold them, y.
    Flat {
        /// Items for one row.
        per_row: u32,
        /// Items in one workgroup.
        per_group: u32,
    },
    /// `groups` workgroups in x and y whatever the batch, and one layer in z for `cols` rows.
    Layers {
        /// Workgroups in x and y.
        groups: u32,
        /// Rows that one layer serves.
        cols: u32,
    },
    /// As layers, one for each group of up to `size` of the rows that chose the same of `experts`
    /// experts: as many as there may be.
    Grouped {
        /// Workgroups in x and y.
        groups: u32,
        /// Experts.
        experts: u32,
        /// Rows of a group, at most.
        size: u32,
    },
    /// `groups` workgroups in x for every row in y, `splits` times in z.
    PerRow {
        /// Workgroups in x.
        groups: u32,
        /// Workgroups in z.
        splits: u32,
    },
}

impl Grid {
    /// Workgroups in x, y and z for `rows` rows, with at most `limit` in x.
    pub fn size(self, rows: u32, limit: u32) -> [u32; 3] {
        let fold = |n: u32| if n <= limit { [n, 1] } else { [limit, n.div_ceil(limit)] };
        match self {
            Self::Flat { per_row, per_group } => {
                let [x, y] = fold(rows.saturating_mul(per_row).div_ceil(per_group));
                [x, y, 1]
            }
            Self::Layers { groups, cols } => {
                let [x, y] = fold(groups);
                [x, y, rows.div_ceil(cols)]
            }
            Self::Grouped { groups, experts, size } => {
                let [x, y] = fold(groups);
                [x, y, most_groups(rows, experts, size)]
            }
            Self::PerRow { groups, splits } => [groups, rows, splits],
        }
    }
}

/// Groups of up to `size` of `rows` rows that chose among `experts` experts, at most: all but one of
/// those chosen leave a group with a single row.
pub fn most_groups(rows: u32, experts: u32, size: u32) -> u32 {
    let experts = experts.min(rows);
    (rows + experts * (size - 1)) / size
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flat { per_row, per_group } => write!(f, "flat({per_row}/{per_group})"),
            Self::Layers { groups, cols } => write!(f, "layers({groups}, rows/{cols})"),
            Self::Grouped { groups, size, .. } => write!(f, "grouped({groups}, rows/{size})"),
            Self::PerRow { groups, splits: 1 } => write!(f, "({groups}, rows)"),
            Self::PerRow { groups, splits } => write!(f, "({groups}, rows, {splits})"),
        }
    }
}

/// What a kernel's `select` answers: the variant, its params and its grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Dispatch {
    /// Which kernel, in which variant.
    pub variant: Variant,
    /// The params, word by word.
    pub params: Vec<u32>,
    /// The size of the dispatch.
    pub grid: Grid,
    /// The rows that the grid counts.
    pub rows: Rows,
}

/// All kernels: tests, tables and benches enumerate this.
pub static KERNELS: [&KernelDecl; 27] = [
    &embed::EMBED,
    &rms_norm::RMS_NORM,
    &gemv::GEMV,
    &gemv_int8::GEMV_INT8,
    &gemv_lanes::GEMV_LANES,
    &gemv_staged::GEMV_STAGED,
    &gemm::GEMM,
    &gemm_coop::GEMM_COOP,
    &gemm_merge::GEMM_MERGE,
    &rope_kv::ROPE_KV,
    &attention::ATTENTION,
    &attention_keys::ATTENTION_KEYS,
    &attention_prefill::ATTENTION_PREFILL,
    &attention_merge::ATTENTION_MERGE,
    &glu::GLU,
    &route::ROUTE,
    &group::GROUP,
    &combine::COMBINE,
    &activate::ACTIVATE,
    &layer_norm::LAYER_NORM,
    &add::ADD,
    &head_norm::HEAD_NORM,
    &permute::PERMUTE,
    &sample_scan::SAMPLE_SCAN,
    &sample::SAMPLE,
    &probe_copy::PROBE_COPY,
    &probe_fma::PROBE_FMA,
];

/// Declares a kernel: `kernel!(NAME, "stem", Params, [binding: Access, ...], variants)`.
macro_rules! kernel {
    ($decl:ident, $stem:literal, $params:ident, [$($name:ident: $access:ident),* $(,)?], $variants:expr) => {
        #[doc = concat!("Declaration of `shaders/", $stem, ".wgsl`.")]
        pub static $decl: $crate::kernels::KernelDecl = $crate::kernels::KernelDecl {
            name: $stem,
            source: include_str!(concat!("../../shaders/", $stem, ".wgsl")),
            bindings: &[$($crate::kernels::Binding {
                name: stringify!($name),
                access: $crate::kernels::Access::$access,
            }),*],
            params: $params::FIELDS,
            variants: $variants,
        };
    };
}
pub(crate) use kernel;

/// Declares a kernel's params: `u32` and `f32` members only, so that the layout of a WGSL
/// uniform struct and of `repr(C)` are the same.
macro_rules! params {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $ty:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $ty),* }

        impl $name {
            /// Names and types of the members, in order.
            pub const FIELDS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), stringify!($ty))),*];

            /// The params word by word.
            pub fn words(&self) -> Vec<u32> {
                bytemuck::cast_slice(bytemuck::bytes_of(self)).to_vec()
            }
        }
    };
}
pub(crate) use params;
