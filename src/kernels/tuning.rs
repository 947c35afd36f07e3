//! Every number that was chosen by measurement, in one place, with what it was measured on.
//! Kernels ask here; nothing here is needed for a right result.

use crate::caps::{AdapterKind, Caps};
use crate::dtype::{Activations, WeightFormat};
use crate::kernels::gemm::Tile;
use crate::kernels::gemm_coop::CoopTile;
use crate::kernels::pack::Order;
use crate::kernels::{Part, Variant, attention};
use crate::shape::MAX_COLS;

/// How a mat-vec divides its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemvShape {
    /// Who shares a row: a thread, a subgroup or a workgroup.
    pub lane: Part,
    /// Rows of a team.
    pub rows: u32,
    /// Tokens of a team.
    pub cols: u32,
    /// Invocations of a workgroup.
    pub wg: u32,
    /// Whether activations go through a uniform binding where they fit.
    pub uniform: bool,
}

/// The division of a mat-vec for batches of up to `tokens` tokens, which are normalised on the
/// way in if `norm` says so.
///
/// A team computes four rows. What it does once for all of them (squares, gains and sums of the
/// activations) takes a fifth of its instructions where it normalises, so there it computes
/// eight: on RDNA3 a q4_0 weight then costs 3.0 vector instructions instead of 3.4, in as many
/// registers (docs/ISA.md). On GPUs there is a variant for each small number of tokens; all fit
/// registers. On software adapters each would cost seconds to compile, so they have one or
/// eight columns.
pub fn gemv(caps: &Caps, tokens: usize, norm: bool) -> GemvShape {
    let rows = if norm { 8 } else { 4 };
    let few = if tokens <= MAX_COLS { Some(tokens.max(1) as u32) } else { None };
    match caps {
        Caps { kind: AdapterKind::Cpu, .. } => GemvShape {
            lane: Part::LaneThread,
            rows,
            cols: if tokens == 1 { 1 } else { 8 },
            wg: 8,
            uniform: true,
        },
        Caps { subgroup: Some(_), .. } => {
            GemvShape { lane: Part::LaneSubgroup, rows, cols: few.unwrap_or(8), wg: 128, uniform: false }
        }
        // A sum over a workgroup waits for a tree in memory: many columns wait longer.
        _ => GemvShape { lane: Part::LaneWorkgroup, rows, cols: few.unwrap_or(4), wg: 64, uniform: false },
    }
}

/// Whether the adapter is an NVIDIA GPU. No API tells; of the GPUs with a single size of subgroups, 32 is theirs.
fn nvidia(caps: &Caps) -> bool {
    caps.kind != AdapterKind::Cpu && caps.subgroup == Some((32, 32))
}

/// How bits become floats. On RDNA3 a byte at any place is one instruction away from a float, and
/// Q4_0 costs 3.0 operations a weight instead of 3.6 (docs/ISA.md). NVIDIA's GPUs shift, mask and convert at half
/// the rate of multiply-adds: on an H100 a mat-vec of 22016 x 4096 took 26.6 us in Q4_0 with shifts and
/// conversions, and 24.8 with masks and multiply-adds; in Q3_K 30.3 and 23.9, in Q2_K 26.2 and 20.5.
pub fn bytes(caps: &Caps) -> Part {
    if nvidia(caps) { Part::BytesMask } else { Part::BytesUnpack }
}

/// How lanes of a subgroup look up a format's table together: some hold it and look up at each other, rather than
/// compute what it holds. On an H100 a mat-vec of 22016 x 4096 in MXFP4 took 24.5 instead of 39.7 us; on lavapipe
/// (Mesa 25, two cores) one of 1536 x 576 in IQ4_NL 113 instead of 143 us, in IQ4_XS 110 instead of 153.
pub fn lookup(caps: &Caps) -> Part {
    let lanes = caps.subgroup.map_or(0, |(least, _)| least);
    match caps.kind {
        AdapterKind::Cpu if lanes >= 8 => Part::LookupEight,
        _ if nvidia(caps) => Part::LookupLanes,
        _ => Part::LookupComputed,
    }
}

/// Whether products of four bytes are one instruction. No API tells; of AMD's GPUs those whose
/// subgroups always have 64 invocations, up to Vega, take a dozen (docs/ISA.md), and software
/// adapters about as many.
pub fn multiplies_bytes(caps: &Caps) -> bool {
    caps.kind != AdapterKind::Cpu && caps.subgroup != Some((64, 64))
}

/// Invocations of a workgroup of [`gemv_staged`](crate::kernels::gemv_staged), where subgroups
/// of a GPU have activations of one token in workgroup memory: four subgroups. Those of more than
/// 64 invocations would need more memory than WebGPU guarantees.
///
/// On an H100 (NVIDIA 580.159), Q4_0, microseconds for 22016 x 4096, 12288 x 4096, 4096 x 11008
/// and 4096 x 4096: 36, 21, 25 and 12 with lanes that load activations for themselves, 32, 21, 22
/// and 10.5 with those of 64 or 128 invocations, 36, 22, 27 and 12.5 of 256.
pub fn staged(caps: &Caps) -> Option<u32> {
    let (_, most) = caps.subgroup.filter(|(_, most)| *most <= 64)?;
    (caps.kind != AdapterKind::Cpu).then_some(4 * most)
}

/// How a mat-vec divides its work among the lanes of a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanesShape {
    /// Rows of a lane.
    pub rows: u32,
    /// Tokens of a lane.
    pub cols: u32,
    /// Invocations of a workgroup.
    pub wg: u32,
}

/// The division among lanes, for batches of up to `tokens` tokens.
pub fn lanes(tokens: usize) -> LanesShape {
    LanesShape { rows: 4, cols: if tokens == 1 { 1 } else { 8 }, wg: 8 }
}

/// How many of its rows a lane takes at a time. Where a compiler writes out loads, one of a word by eight lanes is some
/// 140 instructions of a CPU, so that a loop over four rows in F16 is 44 KB of them, more than a core's cache for
/// instructions holds. On lavapipe (Mesa 25, two cores) a mat-vec of 4096 x 6144 took 7.5 ms with all four and 2.8 with
/// one in F16, 12.1 and 4.7 in F32; but 2.07 and 2.22 in F8_E4M3. Mesa 22, whose loads are loops, loses a seventh in F16.
pub fn turn(caps: &Caps, format: WeightFormat, shape: LanesShape) -> u32 {
    use WeightFormat::{BF16, F16, F32};
    let lanes = caps.subgroup.map_or(0, |(least, _)| least);
    if shape.cols == 1 && lanes >= 8 && matches!(format, F32 | F16 | BF16) { 1 } else { shape.rows }
}

/// How weights lie: in bundles where the adapter is a CPU whose lanes can shuffle, for
/// `gemv_lanes`. On lavapipe (Mesa 25, two busy cores, SmolLM2 Q4_1, in turns) that kernel took
/// prompts of 128 from 34 and 45 to 65 and 90 tokens a second, and generation from 17 and 23 to
/// 21 and 32, against [`gemv`]; bundles then took a tenth to a sixth off its time for one token.
pub fn order(caps: &Caps) -> Order {
    let lanes = caps.kind == AdapterKind::Cpu && caps.subgroup.is_some();
    if lanes { Order::Bundles } else { Order::Rows }
}

/// Sizes of tiles of a matrix product. Large tiles reuse more; but few of them leave an adapter
/// idle.
pub const TILES: [Tile; 3] =
    [Tile { side: 16, each: 8 }, Tile { side: 8, each: 8 }, Tile { side: 8, each: 4 }];

/// The tile for experts, each of which few tokens choose.
pub const EXPERT_TILE: Tile = TILES[2];

/// Rows that share an expert's weights in batches of up to `tokens` tokens: the tokens of a tile, or the
/// columns of a CPU's mat-vec. None where each row goes for itself: for few tokens, which mostly
/// choose different experts.
pub fn expert_group(caps: &Caps, tokens: usize, activations: Activations) -> Option<usize> {
    if order(caps) == Order::Bundles {
        return (tokens > 1).then(|| lanes(tokens).cols as usize);
    }
    tiling(caps, tokens, activations)?;
    let coop = matrix_units(caps, activations).map(|_| COOP_TILES[1].cols);
    Some(coop.unwrap_or(EXPERT_TILE.size()) as usize)
}

/// Tiles of a product by matrix units, in the order of preference.
pub const COOP_TILES: [CoopTile; 2] = [CoopTile { rows: 128, cols: 64 }, CoopTile { rows: 64, cols: 64 }];

/// How matrix products over many tokens divide their work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Tokens.
    pub tokens: usize,
    /// Workgroups that keep the adapter busy.
    pub groups: usize,
}

/// Columns that a workgroup should have for itself, so that what it costs to merge shares (the
/// traffic of eight bytes a sum, and a launch) stays small.
const LEAST_COLUMNS: usize = 512;

impl Tiling {
    fn tiles(self, tile: Tile, rows: usize) -> usize {
        self.tokens.div_ceil(tile.size() as usize) * rows.div_ceil(tile.size() as usize)
    }

    /// The tile for a matrix of `rows` rows whose columns are shared by `splits` workgroups:
    /// the largest of which there are enough.
    pub fn tile(self, rows: usize, splits: usize) -> Tile {
        let [_, middle, small] = TILES;
        let least = if splits > 1 { middle } else { small };
        TILES.into_iter().find(|tile| self.tiles(*tile, rows) >= self.groups).unwrap_or(least)
    }

    /// As [`tile`](Self::tile), for matrix units.
    pub fn coop(self, caps: &Caps, rows: usize, splits: usize, side: u32) -> CoopTile {
        let [large, small] = COOP_TILES;
        let tiles = self.tokens.div_ceil(large.cols as usize) * rows.div_ceil(large.rows as usize);
        let fits = large.memory(side) <= caps.max_workgroup_memory;
        if fits && splits == 1 && tiles >= self.groups { large } else { small }
    }

    /// Workgroups that should share the columns: more than one where there are too few tiles
    /// of middle size, but long columns. The small tile multiplies no more than half as fast.
    pub fn splits(self, rows: usize, columns: usize) -> usize {
        let wanted = self.groups.div_ceil(self.tiles(TILES[1], rows).max(1));
        wanted.min(columns / LEAST_COLUMNS).max(1)
    }
}

/// Whether matrix units multiply: where the adapter has them, and halves will do.
pub fn matrix_units(caps: &Caps, activations: Activations) -> Option<u32> {
    caps.coop.filter(|_| activations != Activations::F32)
}

/// The tiling for batches of up to `tokens` tokens; none where a mat-vec with several columns
/// is better: for a few tokens, and on software adapters, where workgroup memory costs as much
/// as any other. On an H100 a mat-vec of eight columns takes three times as long as a tile of
/// matrix units, which is the same for one token and for 64. No API tells how many cores there
/// are.
pub fn tiling(caps: &Caps, tokens: usize, activations: Activations) -> Option<Tiling> {
    let least = if matrix_units(caps, activations).is_some() { 8 } else { 16 };
    match caps.kind {
        AdapterKind::Cpu => None,
        _ if tokens < least => None,
        AdapterKind::Integrated => Some(Tiling { tokens, groups: 64 }),
        _ => Some(Tiling { tokens, groups: 128 }),
    }
}

/// Invocations of a workgroup that multiplies cooperative matrices of `side`: a subgroup for
/// each of its squares. A wrong guess of their size costs time only. Apple's have 32
/// invocations, whatever Metal reports; where there is a choice, as on AMD, Mesa takes the
/// larger one.
pub fn coop_invocations(caps: &Caps, tile: CoopTile, side: u32) -> u32 {
    let lanes = if side == 8 { 32 } else { caps.subgroup.map_or(32, |(_, most)| most.clamp(16, 64)) };
    (tile.subgroups() * lanes).min(caps.max_invocations)
}

/// Tokens of a prompt in one step. On lavapipe (Mesa 25, two cores, SmolLM2 Q4_1, a prompt of
/// 256) eight make 67 tokens a second, 32 make 80, 128 make 81 and 512 make 82. On GPUs more
/// tokens fill more tiles; but tiles are chosen for a whole chunk, and most prompts are shorter
/// than the next power of two.
pub fn chunk(caps: &Caps) -> usize {
    if caps.kind == AdapterKind::Cpu { 128 } else { 512 }
}

/// Whether normalisation goes into the mat-vec that follows: on a GPU a launch and the wait
/// between two should cost more than squares that teams sum on the side. With several columns
/// every team would do it for each of them. On a CPU it pays where lanes share the squares, and
/// not where each thread sums them all (docs/REJECTED.md).
pub fn norm_prologue(caps: &Caps, tokens: usize) -> bool {
    tokens == 1 && (caps.kind != AdapterKind::Cpu || order(caps) == Order::Bundles)
}

/// Whether heads are normalised where they turn: each pair then sums its whole head, which for one token
/// is less than a launch on a GPU, and more on a CPU.
pub fn head_norm_prologue(caps: &Caps, tokens: usize) -> bool {
    tokens == 1 && caps.kind != AdapterKind::Cpu
}

/// Whether gating goes into the mat-vec before it. On lavapipe (Mesa 25, two cores, SmolLM2
/// Q4_1) it makes prompts 5 % slower, 57 against 60 tokens a second, and one token no slower.
pub fn glu_epilogue(caps: &Caps, tokens: usize) -> bool {
    tokens == 1 || caps.kind != AdapterKind::Cpu
}

/// The division of attention where `group_heads` query heads of `stored` values share a KV head.
///
/// On lavapipe (Mesa 25, two cores) a vector of invocations with keys of their own takes a
/// quarter of the time of 64 invocations that share queries and weights in workgroup memory:
/// 6 to 9 ms against 35 ms for one token of SmolLM2's 30 layers at 1024 positions. That holds only
/// where Mesa unrolls the loops over a head's values; beyond the numbers below the kernel falls
/// to a third of its speed. Eight invocations that share are then as good, with all heads at
/// once: for six heads of 160 values 8.9 ms, against 9.4 ms for three and 14.3 ms for one.
///
/// On GPUs 64 invocations score a page. With many heads, or large ones, 128 share the outputs,
/// so that registers suffice: Mesa's compiler for AMD GPUs takes 120 to 192 instead of 252.
pub fn attention(caps: &Caps, group_heads: usize, stored: usize) -> attention::Shape {
    match (caps.kind, stored) {
        (AdapterKind::Cpu, 0..=64) => attention::Shape { keys: true, wg: 8, heads: 4 },
        (AdapterKind::Cpu, 65..=96) => attention::Shape { keys: true, wg: 8, heads: 2 },
        (AdapterKind::Cpu, 97..=128) => attention::Shape { keys: true, wg: 8, heads: 1 },
        (AdapterKind::Cpu, _) => attention::Shape { keys: false, wg: 8, heads: 8 },
        _ if stored > 128 || group_heads > 4 => attention::Shape { keys: false, wg: 128, heads: 8 },
        _ => attention::Shape { keys: false, wg: 64, heads: 8 },
    }
}

/// Whether plans for up to `tokens` tokens attend in tiles. On software adapters tiles do not
/// pay: reading a key again costs less than fetching weights from workgroup memory.
pub fn attention_tiles(caps: &Caps, tokens: usize) -> bool {
    tokens >= 16 && caps.kind != AdapterKind::Cpu
}

/// Workgroups that attention of one or a few tokens should have, so that a long context fills
/// the adapter; 0 leaves it at one for the query heads of a KV head. No API tells how many
/// cores there are: 64 workgroups keep most GPUs busy and cost others little. On an H100, eight
/// KV heads and 4096 positions, a layer took 98 us with 64 and 42 with 512, and merging them 2
/// and 9.
pub fn attention_groups(caps: &Caps, tokens: usize) -> usize {
    match caps.kind {
        AdapterKind::Cpu => 0,
        AdapterKind::Discrete if tokens == 1 => 256,
        _ if tokens <= 8 => 64,
        _ => 0,
    }
}

/// Invocations of a workgroup in kernels that treat each item alone.
pub fn flat(caps: &Caps) -> u32 {
    if caps.kind == AdapterKind::Cpu { 32 } else { 64 }
}

/// Invocations of the workgroup that chooses a token: as many as WebGPU guarantees, since one
/// core does all of it.
pub fn sample(caps: &Caps) -> u32 {
    if caps.kind == AdapterKind::Cpu { 64 } else { 256 }
}

/// What to choose kernels by on `device` where `variant`, which `caps` led to, can not be relied on: without
/// what the variant needs; then as for an adapter that nothing is known of; then as for a CPU, where each
/// invocation works for itself. None where that was all there was.
pub fn without(device: &Caps, caps: &Caps, variant: &Variant) -> Option<Caps> {
    if variant.needs_coop() {
        return Some(Caps { coop: None, ..caps.clone() });
    }
    let plain = Caps { subgroup: None, coop: None, ..caps.clone() };
    match caps.kind {
        _ if variant.needs_subgroup() => Some(plain),
        AdapterKind::Other if device.kind != AdapterKind::Cpu => {
            Some(Caps { kind: AdapterKind::Cpu, ..plain })
        }
        AdapterKind::Other => None,
        AdapterKind::Cpu if device.kind != AdapterKind::Cpu => None,
        _ => Some(Caps { kind: AdapterKind::Other, ..plain }),
    }
}

/// Who shares a row in kernels that reduce over a whole workgroup.
pub fn workgroup_lane(caps: &Caps) -> Part {
    if caps.subgroup.is_some() { Part::LaneWorkgroupSubgroup } else { Part::LaneWorkgroup }
}
