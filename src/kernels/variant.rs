//! Variants: which parts a kernel is linked from, and its compile-time numbers. A variant is
//! the key of the pipeline cache and prints as in plans, profiles and errors.

use std::fmt;

use crate::caps::Caps;
use crate::dtype::{KvFormat, WeightFormat};
use crate::kernels::{Access, Binding, KernelDecl, Rows, tuning};
use crate::nonlinearity::Nonlinearity;
use crate::shape::GROUP;

/// A part that is linked into a kernel; see `shaders/README.md` for what each provides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Part {
    Step,
    LaneThread,
    LaneSubgroup,
    LaneTeams,
    LaneWorkgroup,
    LaneWorkgroupSubgroup,
    LaneTile,
    LaneTileSubgroup,
    Coop8,
    Coop16,
    Weight(WeightFormat),
    TableIq4,
    TableMxfp4,
    LookupNone,
    LookupComputed,
    LookupLanes,
    LookupEight,
    BytesUnpack,
    BytesMask,
    FourRows,
    BlocksAlone,
    BlocksSuper,
    LanesAlone,
    LanesSuper,
    GroupsOne,
    GroupsHalves,
    GroupsSpread,
    OrderRows,
    OrderBundles,
    XStorage,
    XUniform,
    OutStore,
    OutAdd,
    OutGlu(Nonlinearity),
    Act(Nonlinearity),
    ActCap,
    CapNone,
    CapTanh,
    NormNone,
    NormRms,
    BiasNone,
    BiasVector,
    MatrixOne,
    MatrixChosen,
    MatrixGrouped,
    RowsTokens,
    RowsOutputs,
    Kv(KvFormat),
    SpanWhole,
    SpanSplit,
    PagesAll,
    PagesRing,
    RowStore,
    RowAdd,
    HeadsPlain,
    HeadsRms,
    Choice,
}

macro_rules! part {
    ($stem:literal) => {
        (concat!("parts/", $stem, ".wgsl"), include_str!(concat!("../../shaders/parts/", $stem, ".wgsl")))
    };
}

impl Part {
    /// All parts, for the test that no file is an orphan.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::Step,
            Self::LaneThread,
            Self::LaneSubgroup,
            Self::LaneTeams,
            Self::LaneWorkgroup,
            Self::LaneWorkgroupSubgroup,
            Self::LaneTile,
            Self::LaneTileSubgroup,
            Self::Coop8,
            Self::Coop16,
            Self::TableIq4,
            Self::TableMxfp4,
            Self::LookupNone,
            Self::LookupComputed,
            Self::LookupLanes,
            Self::LookupEight,
            Self::BytesUnpack,
            Self::BytesMask,
            Self::FourRows,
            Self::BlocksAlone,
            Self::BlocksSuper,
            Self::LanesAlone,
            Self::LanesSuper,
            Self::GroupsOne,
            Self::GroupsHalves,
            Self::GroupsSpread,
            Self::OrderRows,
            Self::OrderBundles,
            Self::XStorage,
            Self::XUniform,
            Self::OutStore,
            Self::OutAdd,
            Self::ActCap,
            Self::CapNone,
            Self::CapTanh,
            Self::NormNone,
            Self::NormRms,
            Self::BiasNone,
            Self::BiasVector,
            Self::MatrixOne,
            Self::MatrixChosen,
            Self::MatrixGrouped,
            Self::RowsTokens,
            Self::RowsOutputs,
            Self::SpanWhole,
            Self::SpanSplit,
            Self::PagesAll,
            Self::PagesRing,
            Self::RowStore,
            Self::RowAdd,
            Self::HeadsPlain,
            Self::HeadsRms,
            Self::Choice,
        ];
        all.extend(Nonlinearity::ALL.map(Self::OutGlu));
        all.extend(Nonlinearity::ALL.map(Self::Act));
        all.extend(WeightFormat::ALL.map(Self::Weight));
        all.extend(KvFormat::ALL.map(Self::Kv));
        all
    }

    /// The file below `shaders/` and its text.
    pub fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::Step => part!("step"),
            Self::LaneThread => part!("lane_thread"),
            Self::LaneSubgroup => part!("lane_subgroup"),
            Self::LaneTeams => part!("lane_teams"),
            Self::LaneWorkgroup => part!("lane_workgroup"),
            Self::LaneWorkgroupSubgroup => part!("lane_workgroup_subgroup"),
            Self::LaneTile => part!("lane_tile"),
            Self::LaneTileSubgroup => part!("lane_tile_subgroup"),
            Self::Coop8 => part!("coop_8"),
            Self::Coop16 => part!("coop_16"),
            Self::Weight(WeightFormat::F32) => part!("weight_f32"),
            Self::Weight(WeightFormat::F16) => part!("weight_f16"),
            Self::Weight(WeightFormat::BF16) => part!("weight_bf16"),
            Self::Weight(WeightFormat::F8_E4M3) => part!("weight_f8_e4m3"),
            Self::Weight(WeightFormat::F8_E5M2) => part!("weight_f8_e5m2"),
            Self::Weight(WeightFormat::Q8_0) => part!("weight_q8_0"),
            Self::Weight(WeightFormat::Q4_0) => part!("weight_q4_0"),
            Self::Weight(WeightFormat::Q4_1) => part!("weight_q4_1"),
            Self::Weight(WeightFormat::Q5_0) => part!("weight_q5_0"),
            Self::Weight(WeightFormat::Q5_1) => part!("weight_q5_1"),
            Self::Weight(WeightFormat::Q2_K) => part!("weight_q2_k"),
            Self::Weight(WeightFormat::Q3_K) => part!("weight_q3_k"),
            Self::Weight(WeightFormat::Q4_K) => part!("weight_q4_k"),
            Self::Weight(WeightFormat::Q5_K) => part!("weight_q5_k"),
            Self::Weight(WeightFormat::Q6_K) => part!("weight_q6_k"),
            Self::Weight(WeightFormat::IQ4_NL) => part!("weight_iq4_nl"),
            Self::Weight(WeightFormat::IQ4_XS) => part!("weight_iq4_xs"),
            Self::Weight(WeightFormat::MXFP4) => part!("weight_mxfp4"),
            Self::Weight(WeightFormat::U4) => part!("weight_u4"),
            Self::TableIq4 => part!("table_iq4"),
            Self::TableMxfp4 => part!("table_mxfp4"),
            Self::LookupNone => part!("lookup_none"),
            Self::LookupComputed => part!("lookup_computed"),
            Self::LookupLanes => part!("lookup_lanes"),
            Self::LookupEight => part!("lookup_eight"),
            Self::BytesUnpack => part!("bytes_unpack"),
            Self::BytesMask => part!("bytes_mask"),
            Self::FourRows => part!("four_rows"),
            Self::BlocksAlone => part!("blocks_alone"),
            Self::BlocksSuper => part!("blocks_super"),
            Self::LanesAlone => part!("lanes_alone"),
            Self::LanesSuper => part!("lanes_super"),
            Self::GroupsOne => part!("groups_one"),
            Self::GroupsHalves => part!("groups_halves"),
            Self::GroupsSpread => part!("groups_spread"),
            Self::OrderRows => part!("order_rows"),
            Self::OrderBundles => part!("order_bundles"),
            Self::XStorage => part!("x_storage"),
            Self::XUniform => part!("x_uniform"),
            Self::OutStore => part!("out_store"),
            Self::OutAdd => part!("out_add"),
            Self::OutGlu(_) => part!("out_glu"),
            Self::Act(Nonlinearity::Silu) => part!("act_silu"),
            Self::Act(Nonlinearity::GeluTanh) => part!("act_gelu_tanh"),
            Self::Act(Nonlinearity::Gelu) => part!("act_gelu"),
            Self::ActCap => part!("act_cap"),
            Self::CapNone => part!("cap_none"),
            Self::CapTanh => part!("cap_tanh"),
            Self::NormNone => part!("norm_none"),
            Self::NormRms => part!("norm_rms"),
            Self::BiasNone => part!("bias_none"),
            Self::BiasVector => part!("bias_vector"),
            Self::MatrixOne => part!("matrix_one"),
            Self::MatrixChosen => part!("matrix_chosen"),
            Self::MatrixGrouped => part!("matrix_grouped"),
            Self::RowsTokens => part!("rows_tokens"),
            Self::RowsOutputs => part!("rows_outputs"),
            Self::Kv(KvFormat::F32) => part!("kv_f32"),
            Self::Kv(KvFormat::F16) => part!("kv_f16"),
            Self::Kv(KvFormat::Q8_0) => part!("kv_q8_0"),
            Self::Kv(KvFormat::Q4_0) => part!("kv_q4_0"),
            Self::SpanWhole => part!("span_whole"),
            Self::SpanSplit => part!("span_split"),
            Self::PagesAll => part!("pages_all"),
            Self::PagesRing => part!("pages_ring"),
            Self::RowStore => part!("row_store"),
            Self::RowAdd => part!("row_add"),
            Self::HeadsPlain => part!("heads_plain"),
            Self::HeadsRms => part!("heads_rms"),
            Self::Choice => part!("choice"),
        }
    }

    /// The word that stands for the part in a variant's name; none for the usual choice.
    fn label(self) -> Option<&'static str> {
        match self {
            Self::Step
            | Self::LaneTile
            | Self::LaneTileSubgroup
            | Self::TableIq4
            | Self::TableMxfp4
            | Self::LookupNone
            | Self::LookupComputed
            | Self::BytesUnpack
            | Self::FourRows
            | Self::BlocksAlone
            | Self::BlocksSuper
            | Self::LanesAlone
            | Self::LanesSuper
            | Self::GroupsOne
            | Self::OrderRows
            | Self::XStorage
            | Self::OutStore
            | Self::CapNone
            | Self::NormNone
            | Self::BiasNone
            | Self::MatrixOne
            | Self::RowsTokens
            | Self::SpanWhole
            | Self::PagesAll
            | Self::RowStore
            | Self::HeadsPlain
            | Self::Choice => None,
            Self::LaneThread => Some("thread"),
            Self::LaneSubgroup | Self::LaneTeams => Some("subgroup"),
            Self::LaneWorkgroup => Some("workgroup"),
            Self::LaneWorkgroupSubgroup => Some("workgroup+subgroup"),
            Self::Coop8 => Some("coop_8"),
            Self::Coop16 => Some("coop_16"),
            Self::Weight(format) => Some(format.name()),
            Self::LookupLanes | Self::LookupEight => Some("lanes"),
            Self::BytesMask => Some("masks"),
            Self::GroupsHalves => Some("halves"),
            Self::GroupsSpread => Some("spread"),
            Self::OrderBundles => Some("bundles"),
            Self::XUniform => Some("uniform"),
            Self::OutAdd | Self::RowAdd => Some("add"),
            Self::OutGlu(act) => Some(act.glu()),
            Self::Act(act) => Some(act.name()),
            Self::ActCap | Self::CapTanh => Some("cap"),
            Self::NormRms => Some("norm"),
            Self::BiasVector => Some("bias"),
            Self::MatrixChosen => Some("experts"),
            Self::MatrixGrouped => Some("grouped"),
            Self::RowsOutputs => Some("outputs"),
            Self::Kv(KvFormat::F32) => Some("kv_f32"),
            Self::Kv(KvFormat::F16) => Some("kv_f16"),
            Self::Kv(KvFormat::Q8_0) => Some("kv_q8_0"),
            Self::Kv(KvFormat::Q4_0) => Some("kv_q4_0"),
            Self::SpanSplit => Some("split"),
            Self::PagesRing => Some("ring"),
            Self::HeadsRms => Some("norm"),
        }
    }

    /// The part for the rows that a launch works on.
    pub fn rows(rows: Rows) -> Self {
        match rows {
            Rows::Tokens | Rows::Chosen(_) => Self::RowsTokens,
            Rows::Outputs => Self::RowsOutputs,
        }
    }

    /// The table that the bits of a format are places in, if they are.
    fn table(format: WeightFormat) -> Option<Self> {
        match format {
            WeightFormat::IQ4_NL | WeightFormat::IQ4_XS => Some(Self::TableIq4),
            WeightFormat::MXFP4 => Some(Self::TableMxfp4),
            _ => None,
        }
    }

    /// How kernels look something up in the table of a format: without what only some kernels can have.
    pub fn lookup(format: WeightFormat) -> Self {
        Self::table(format).map_or(Self::LookupNone, |_| Self::LookupComputed)
    }

    /// As [`lookup`](Self::lookup), where all lanes of a subgroup look up at once.
    pub fn lookup_together(format: WeightFormat, caps: &Caps) -> Self {
        Self::table(format).map_or(Self::LookupNone, |_| tuning::lookup(caps))
    }

    /// How a group is put together, of its own or with what a superblock shares.
    fn blocks(format: WeightFormat) -> Self {
        if format.block_len() > GROUP { Self::BlocksSuper } else { Self::BlocksAlone }
    }

    /// The same for the four rows of a CPU's lane.
    pub fn lanes(format: WeightFormat) -> Self {
        if format.block_len() > GROUP { Self::LanesSuper } else { Self::LanesAlone }
    }

    /// Which weights of a row a lane of a GPU takes at once, and how.
    pub fn groups(format: WeightFormat) -> Self {
        use WeightFormat::{BF16, F8_E4M3, F8_E5M2, F16, F32, Q2_K, Q3_K};
        match format {
            F32 | F16 | BF16 | F8_E4M3 | F8_E5M2 => Self::GroupsSpread,
            Q2_K | Q3_K => Self::GroupsHalves,
            _ => Self::GroupsOne,
        }
    }

    /// Parts that it calls or that call it, which are linked with it.
    pub fn needs(self) -> impl Iterator<Item = Self> {
        let needs = match self {
            Self::Weight(format) => [Some(Self::blocks(format)), Self::table(format)],
            Self::LookupComputed => [Some(Self::LookupNone), None],
            Self::GroupsOne => [Some(Self::FourRows), None],
            Self::OutGlu(act) => [Some(Self::Act(act)), None],
            _ => [None, None],
        };
        needs.into_iter().flatten()
    }

    /// Whether the part uses subgroup operations.
    pub fn needs_subgroup(self) -> bool {
        matches!(
            self,
            Self::LaneSubgroup
                | Self::LaneTeams
                | Self::LaneWorkgroupSubgroup
                | Self::LaneTileSubgroup
                | Self::LookupLanes
                | Self::LookupEight
        )
    }

    /// The extensions of WGSL that the part must have enabled.
    pub fn enables(self) -> &'static [&'static str] {
        match self {
            Self::Coop8 | Self::Coop16 => &["f16", "wgpu_cooperative_matrix"],
            _ => &[],
        }
    }
}

/// Most parts, and most numbers, that a variant may have.
const PARTS: usize = 13;
const NUMBERS: usize = 7;

/// A kernel with its parts and its compile-time numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Variant {
    kernel: &'static KernelDecl,
    parts: [Option<Part>; PARTS],
    numbers: [Option<(&'static str, u32)>; NUMBERS],
}

impl Variant {
    /// A variant of `kernel` linked from `parts`, with the header's `numbers`. At most thirteen
    /// parts and seven numbers are kept.
    pub fn new(kernel: &'static KernelDecl, parts: &[Part], numbers: &[(&'static str, u32)]) -> Self {
        debug_assert!(parts.len() <= PARTS && numbers.len() <= NUMBERS);
        let mut variant = Self { kernel, parts: [None; PARTS], numbers: [None; NUMBERS] };
        for (slot, part) in variant.parts.iter_mut().zip(parts) {
            *slot = Some(*part);
        }
        for (slot, number) in variant.numbers.iter_mut().zip(numbers) {
            *slot = Some(*number);
        }
        variant
    }

    /// The kernel's declaration.
    pub fn kernel(&self) -> &'static KernelDecl {
        self.kernel
    }

    /// The parts, in linking order.
    pub fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        self.parts.iter().flatten().copied()
    }

    /// The header's numbers.
    pub fn numbers(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        self.numbers.iter().flatten().copied()
    }

    /// The header's number called `name`.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.numbers().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// How this variant uses a declared binding.
    pub fn access(&self, binding: &Binding) -> Access {
        match binding.access {
            Access::Read if binding.name == "x" && self.parts().any(|p| p == Part::XUniform) => {
                Access::Uniform
            }
            other => other,
        }
    }

    /// Whether the variant uses subgroup operations.
    pub fn needs_subgroup(&self) -> bool {
        self.parts().any(Part::needs_subgroup)
    }

    /// Whether the variant uses cooperative matrices of f16.
    pub fn needs_coop(&self) -> bool {
        self.parts().any(|p| matches!(p, Part::Coop8 | Part::Coop16))
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.kernel.name)?;
        let labels = self.parts().filter_map(|p| p.label().map(str::to_string));
        let numbers = self.numbers().map(|(n, v)| format!("{}={v}", n.to_lowercase()));
        for (i, word) in labels.chain(numbers).enumerate() {
            write!(f, "{}{word}", if i == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}
