//! Every kernel, in every variant that an adapter may be given, against the CPU reference, at
//! sizes that are multiples of nothing. Plans are made for the capabilities of many adapters
//! and run on the one at hand: a kernel must be right whatever was assumed of the card.

#[path = "support/rig.rs"]
mod rig;
mod support;

use rig::{Random, Rig, matrix, vector};
use support::{assert_close, gpu};
use wgllama::caps::AdapterKind;
use wgllama::graph::reference::{Reference, Source};
use wgllama::graph::{
    Batch, Graph, HeadNorm, Heads, Rope, Scores, Spans, Token, VectorId, WeightId, WeightSpec,
};
use wgllama::kernels::gemv::{self, Gemv};
use wgllama::kernels::tuning::{GemvShape, TILES};
use wgllama::kernels::{Dispatch, Part};
use wgllama::kernels::{KernelDecl, Variant, gemm, gemm_coop, gemv_staged, link::link, tuning};
use wgllama::kernels::{gemv_int8, gemv_lanes};
use wgllama::nonlinearity::Nonlinearity;
use wgllama::plan::{PlanOptions, lower};
use wgllama::shape::Rows;
use wgllama::{Activations, Caps, Context, KvFormat, WeightFormat};

/// Presets that the device at hand can run: all, unless it has no subgroups.
fn runnable(gpu: &Context) -> Vec<(&'static str, Caps)> {
    let mut all = Caps::presets().to_vec();
    all.retain(|(_, c)| c.subgroup.is_none() || gpu.caps().subgroup.is_some());
    for (_, caps) in &mut all {
        caps.max_storage_binding = caps.max_storage_binding.min(gpu.caps().max_storage_binding);
        caps.max_buffer = caps.max_buffer.min(gpu.caps().max_buffer);
        caps.coop = caps.coop.and(gpu.caps().coop);
    }
    all
}

/// Whether a format stands for the others: without scales, with one, with a minimum, with scales of halves.
fn representative(format: WeightFormat) -> bool {
    matches!(format, WeightFormat::F16 | WeightFormat::Q8_0 | WeightFormat::Q4_1 | WeightFormat::Q6_K)
}

/// The device at hand as one whose weights lie in rows, as on every GPU.
fn in_rows(gpu: &Context) -> Caps {
    Caps { kind: AdapterKind::Discrete, ..gpu.caps().clone() }
}

/// Ids of a vocabulary of `vocab`, one sequence.
fn batch(n: usize, vocab: usize, seed: u64) -> Batch {
    let mut random = Random::new(seed);
    let ids: Vec<u32> = (0..n).map(|_| random.below(vocab) as u32).collect();
    Batch::sequence(&ids, 0, 0).with_all_outputs()
}

/// embed -> norm -> linear(+bias): the vocabulary is small, K is real.
fn linear_graph(k: usize, rows: usize, bias: bool) -> Graph {
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 11, k)).unwrap();
    let w = g.weight(matrix("w", rows, k)).unwrap();
    let bias = bias.then(|| g.vector(vector("bias", rows)));
    let x = g.embed("x", table);
    g.linear("y", x, w, bias).unwrap();
    g
}

/// Error that sums of `k` products of order 1 / sqrt(k) may have: a few roundings of f32, and
/// outliers twenty times as large.
const SUM_TOLERANCE: f32 = 2e-4;

/// A plan of a linear graph whose mat-vecs are replaced by what `dispatch` makes of them.
fn with_dispatch(
    rig: &Rig,
    caps: &Caps,
    tokens: usize,
    bias: bool,
    dispatch: impl Fn(&Gemv) -> Dispatch,
) -> wgllama::plan::Plan {
    let graph = &rig.graph;
    let options = exact(tokens, 1, KvFormat::F32);
    let layouts = rig.layouts(caps);
    let mut plan = lower(graph, &layouts, caps, &options).unwrap();
    let spec = &graph.weights[1];
    let matrices = plan.launches.iter_mut().filter(|l| l.weight_bytes > 0);
    for (launch, shard) in matrices.zip(&layouts[1].shards) {
        launch.dispatch = dispatch(&Gemv {
            format: shard.planes.format,
            order: shard.planes.order,
            inputs: spec.cols,
            outputs: spec.rows,
            rows: shard.computed,
            first: shard.first,
            stride: shard.stride,
            out: gemv::Out::Store,
            norm: None,
            activations: Activations::Int8,
            bytes: tuning::bytes(caps),
            bias,
            experts: None,
            batch: Rows::Tokens,
            max_batch: tokens,
        });
        launch.bindings.truncate(launch.dispatch.variant.kernel().bindings.len());
        if let Some(vectors) = launch.dispatch.variant.number("X4") {
            for slot in &mut plan.slots {
                *slot = (*slot).max(vectors as usize * 4);
            }
        }
    }
    plan
}

/// Tiles that are not full, in any of three directions: every format in the smallest tile, since
/// the others differ in nothing that decodes, and every tile.
#[test]
fn gemm_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    let caps = &in_rows(&gpu);
    let small = TILES[TILES.len() - 1];
    let mut cases: Vec<_> = WeightFormat::ALL.map(|format| (format, small)).to_vec();
    cases.extend(TILES.map(|tile| (WeightFormat::Q8_0, tile)));
    for (format, tile) in cases {
        for (k, rows, tokens, bias) in [(70, 33, 17, true), (576, 130, 150, false), (512, 35, 17, false)] {
            // One for each format.
            let block = match k {
                70 => 1,
                576 => 32,
                _ => 256,
            };
            if format.block_len() != block {
                continue;
            }
            let rig = Rig::new(linear_graph(k, rows, bias), format, k as u64);
            let plan = with_dispatch(&rig, caps, tokens, bias, |p| gemm::dispatch(p, tile, 1));
            let batch = batch(tokens, 11, 1);
            let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
            let expected = reference.logits(&batch).unwrap();
            let found = run_rows(&rig, &gpu, caps, &plan, &batch);
            let what = format!("{format}, k {k}, {tokens} tokens, {tile:?}");
            assert_close(&what, &found, &expected, SUM_TOLERANCE);
        }
    }
}

/// Rows that fill no lane or subgroup, and tokens that fill no layer, in every format.
#[test]
fn gemv_of_lanes_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    let caps = &Caps { kind: AdapterKind::Cpu, ..gpu.caps().clone() };
    if caps.subgroup.is_none() {
        eprintln!("skipped: the adapter has no subgroups");
        return;
    }
    for format in WeightFormat::ALL {
        for (i, k) in [70, 576, 1536, 4096].into_iter().enumerate() {
            if k % format.block_len() != 0 || (k == 4096 && !representative(format)) {
                continue;
            }
            let (rows, bias) = ([33, 1, 7, 70][i], i == 0);
            let rig = Rig::new(linear_graph(k, rows, bias), format, k as u64);
            for tokens in [1, 9] {
                let plan = with_dispatch(&rig, caps, tokens, bias, |p| gemv_lanes::select(p, caps));
                let batch = batch(tokens, 11, i as u64 + 1);
                let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
                let expected = reference.logits(&batch).unwrap();
                let found = run_rows(&rig, &gpu, caps, &plan, &batch);
                assert_close(&format!("{format}, k {k}, {tokens} tokens"), &found, &expected, SUM_TOLERANCE);
            }
        }
    }
}

/// `x` in groups of 32, rounded to whole multiples of a 127th of the largest.
fn rounded(x: &[f32]) -> Vec<f32> {
    let round = |group: &[f32]| {
        let most = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let inverse = if most == 0.0 { 0.0 } else { 127.0 / most };
        group.iter().map(|v| (v * inverse).round_ties_even() * (most / 127.0)).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(round).collect()
}

/// WGSL lets a division be 2.5 units in the last place off, so that an activation between two
/// bytes may be rounded to the other one: a step more or less in one product.
const BYTES_TOLERANCE: f32 = 1e-3;

/// A mat-vec of bytes is that of the rounded activations, for all numbers of columns, by all
/// lanes; and another group than the first may hold nothing but zeros.
#[test]
fn gemv_of_bytes_is_that_of_rounded_activations() {
    let Some(gpu) = gpu() else { return };
    let rows_of = in_rows(&gpu);
    let trees = Caps { subgroup: None, ..rows_of.clone() };
    for format in [WeightFormat::Q8_0, WeightFormat::Q4_0, WeightFormat::Q4_1, WeightFormat::U4] {
        for (k, rows, tokens, bias) in [(96, 33, 1, true), (576, 7, 1, false), (576, 9, 3, false)] {
            let mut rig = Rig::new(linear_graph(k, rows, bias), format, k as u64);
            // The embedding as it is, so that the same values are rounded here and there.
            rig.store(0, WeightFormat::F32, |i, v| if i % k / 32 == 1 { 0.0 } else { v });
            let (ids, graph) = (batch(tokens, 11, 1), &rig.graph);
            let (x, w) = (rig.weight(graph, WeightId(0)).unwrap(), rig.weight(graph, WeightId(1)).unwrap());
            let biases = if bias { rig.vector(graph, VectorId(0)).unwrap() } else { vec![0.0; rows] };
            let token = |t: &Token| {
                let x = rounded(&x[t.id as usize * k..][..k]);
                let row = |(w, b): (&[f32], &f32)| {
                    w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32 + b
                };
                w.chunks(k).zip(&biases).map(row).collect::<Vec<_>>()
            };
            let expected: Vec<f32> = ids.tokens.iter().flat_map(token).collect();
            // What reduces does not depend on the format.
            let all = if format == WeightFormat::Q8_0 { vec![&rows_of, &trees] } else { vec![&rows_of] };
            for caps in all {
                let plan = with_dispatch(&rig, caps, tokens, bias, |p| gemv_int8::select(p, caps).unwrap());
                let found = run_rows(&rig, &gpu, caps, &plan, &ids);
                assert_close(
                    &format!("{format}, k {k}, {tokens} tokens"),
                    &found,
                    &expected,
                    BYTES_TOLERANCE,
                );
            }
        }
    }
}

/// Options of a plan that rounds no activations.
fn exact(tokens: usize, outputs: usize, kv: KvFormat) -> PlanOptions {
    PlanOptions { activations: Activations::F32, ..PlanOptions::new(tokens, outputs, kv) }
}

/// Error that sums may have whose terms are rounded to halves on both sides.
const HALF_TOLERANCE: f32 = 4e-3;

/// A problem whose tiles are full in no direction, with activations of order `scale`, run by
/// `dispatch` and by the reference.
fn coop_equals_the_reference(
    gpu: &Context,
    (format, k, bias, scale): (WeightFormat, usize, bool, f32),
    dispatch: impl Fn(&Gemv) -> Dispatch,
) {
    let rig = Rig::scaled(linear_graph(k, 70, bias), format, k as u64, scale);
    let caps = &in_rows(gpu);
    let plan = with_dispatch(&rig, caps, 70, bias, &dispatch);
    let batch = batch(70, 11, 1);
    let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
    let expected = reference.logits(&batch).unwrap();
    let found = run_rows(&rig, gpu, caps, &plan, &batch);
    assert_close(&format!("{format}, scale {scale}"), &found, &expected, HALF_TOLERANCE * scale);
}

/// Activations of order 1, and such as exceed what a half holds.
const COOP_CASES: [(WeightFormat, usize, bool, f32); 2] =
    [(WeightFormat::F32, 70, true, 1.0), (WeightFormat::Q8_0, 96, false, 1e5)];

#[test]
fn gemm_of_cooperative_matrices_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    let Some(side) = gpu.caps().coop else {
        eprintln!("skipped: the adapter has no cooperative matrices");
        return;
    };
    for tile in tuning::COOP_TILES {
        // Workgroups of one subgroup or more than there are squares, too: right, if slow.
        for wg in [32, tuning::coop_invocations(gpu.caps(), tile, side), 512] {
            for case in COOP_CASES {
                coop_equals_the_reference(&gpu, case, |p| gemm_coop::dispatch(p, 1, tile, side, wg));
            }
        }
    }
}

/// The kernel with sums of invocations in the place of matrices: all of it but the matrices is
/// tested on any adapter with f16.
#[test]
fn gemm_of_emulated_matrices_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    if !gpu.caps().shader_f16 || gpu.caps().subgroup.is_none() {
        eprintln!("skipped: the adapter has no f16, or no subgroups");
        return;
    }
    // On subgroups of eight: in four turns, and with subgroups to spare.
    for ((wg, tile), case) in [16, 64].into_iter().zip(tuning::COOP_TILES).zip(COOP_CASES) {
        coop_equals_the_reference(&gpu, case, |p| {
            let real = gemm_coop::dispatch(p, 1, tile, 16, wg);
            let emulated = include_str!("support/coop_emulated.wgsl");
            let source = link(&real.variant).source.replace(Part::Coop16.source().1, emulated);
            assert!(!source.contains("coop_mat"));
            let source = source.replace("enable wgpu_cooperative_matrix;", "");
            let decl = KernelDecl { name: "emulated", source: source.leak(), ..*real.variant.kernel() };
            Dispatch { variant: Variant::new(Box::leak(Box::new(decl)), &[], &[]), ..real }
        });
    }
}

/// Divisions of work that `tuning` and `select` may choose, with a batch that fills no layer. Of the columns of
/// small batches only some, since each takes seconds to compile; tests/fusions.rs has others.
fn shapes(lane: Part) -> Vec<(usize, GemvShape)> {
    let shape = |tokens, cols, wg, uniform| (tokens, GemvShape { lane, rows: 4, cols, wg, uniform });
    match lane {
        Part::LaneThread => {
            vec![shape(1, 1, 8, true), shape(1, 1, 8, false), shape(9, 8, 8, true), shape(9, 8, 8, false)]
        }
        Part::LaneSubgroup => vec![shape(1, 1, 128, false), shape(9, 8, 128, false)],
        _ => vec![shape(1, 1, 64, false), shape(3, 4, 64, false)],
    }
}

#[test]
fn the_tested_divisions_are_those_that_adapters_get() {
    for (name, caps) in Caps::presets() {
        for tokens in [1, 9, 512] {
            let chosen = tuning::gemv(&caps, tokens, false);
            assert!(
                shapes(chosen.lane).iter().any(|(_, s)| *s == chosen),
                "{name}: {chosen:?} is not tested"
            );
        }
        // A batch of few tokens wastes no column on a GPU.
        for tokens in 2..=8 {
            let chosen = tuning::gemv(&caps, tokens, false);
            let cpu = caps.kind == wgllama::caps::AdapterKind::Cpu;
            assert_eq!(chosen.cols as usize, if cpu { 8 } else { tokens }, "{name}");
        }
    }
}

fn gemv_equals_the_reference(lane: Part) {
    let Some(gpu) = gpu() else { return };
    if lane == Part::LaneSubgroup && gpu.caps().subgroup.is_none() {
        eprintln!("skipped: the adapter has no subgroups");
        return;
    }
    let caps = &in_rows(&gpu);
    for format in WeightFormat::ALL {
        for (i, k) in [70, 576, 1536, 4096, 11008].into_iter().enumerate() {
            // How a format decodes depends on neither lanes nor columns, which take a compiler seconds each.
            let all = representative(format);
            if k % format.block_len() != 0 || (!all && (k != 1536 || lane != Part::LaneThread)) {
                continue;
            }
            let (rows, bias) = ([33, 1, 7, 5, 3][i], i == 0);
            let rig = Rig::new(linear_graph(k, rows, bias), format, k as u64);
            for (tokens, shape) in shapes(lane).into_iter().filter(|(tokens, _)| all || *tokens == 1) {
                let plan = with_dispatch(&rig, caps, tokens, bias, |p| gemv::dispatch(p, shape, caps));
                // What exceeds a uniform binding is never bound so.
                let vectors = plan.launches.iter().filter_map(|l| l.dispatch.variant.number("X4")).max();
                if shape.uniform && vectors.unwrap_or(0) as u64 * 16 > caps.max_uniform_binding {
                    continue;
                }
                let batch = batch(tokens, 11, i as u64 + 1);
                let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
                let expected = reference.logits(&batch).unwrap();
                let found = run_rows(&rig, &gpu, caps, &plan, &batch);
                let what = format!("{format}, k {k}, {tokens} tokens, {shape:?}");
                assert_close(&what, &found, &expected, SUM_TOLERANCE);
            }
        }
    }
}

/// All rows of a plan whose last node has one row a token.
fn run_rows(rig: &Rig, gpu: &Context, caps: &Caps, plan: &wgllama::plan::Plan, batch: &Batch) -> Vec<f32> {
    let mut plan = plan.clone();
    plan.options.max_outputs = plan.options.max_tokens;
    rig.run(gpu, caps, &plan, std::slice::from_ref(batch), 192)
}

#[test]
fn gemv_of_staged_activations_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    if gpu.caps().subgroup.is_none() {
        eprintln!("skipped: the adapter has no subgroups");
        return;
    }
    let caps = &in_rows(&gpu);
    for format in WeightFormat::ALL {
        for (i, (k, rows)) in [(70, 33), (576, 7), (1536, 70), (4096, 5)].into_iter().enumerate() {
            if k % format.block_len() != 0 || (!representative(format) && k != 1536) {
                continue;
            }
            let bias = i == 0;
            let rig = Rig::new(linear_graph(k, rows, bias), format, k as u64);
            // One team, and as many as there are on GPUs.
            let (_, most) = caps.subgroup.unwrap();
            for wg in [most, 4 * most] {
                // By masks, which most adapters do not get, where one team is enough.
                let bytes = if wg == most { Part::BytesMask } else { tuning::bytes(caps) };
                let dispatch = |p: &Gemv| gemv_staged::dispatch(&Gemv { bytes, ..*p }, wg, caps);
                let plan = with_dispatch(&rig, caps, 1, bias, dispatch);
                let batch = batch(1, 11, i as u64 + 1);
                let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
                let expected = reference.logits(&batch).unwrap();
                let found = run_rows(&rig, &gpu, caps, &plan, &batch);
                assert_close(&format!("{format}, k {k}, {wg}"), &found, &expected, SUM_TOLERANCE);
            }
        }
    }
}

#[test]
fn gemv_of_threads_equals_the_reference() {
    gemv_equals_the_reference(Part::LaneThread);
}

#[test]
fn gemv_of_subgroups_equals_the_reference() {
    gemv_equals_the_reference(Part::LaneSubgroup);
}

#[test]
fn gemv_of_workgroups_equals_the_reference() {
    gemv_equals_the_reference(Part::LaneWorkgroup);
}

/// embed -> norm -> q, k, v -> rope -> attention -> linear + residual -> norm of the outputs.
fn attention_graph(heads: Heads, rotated: usize) -> Graph {
    scored_graph(heads, rotated, None, None)
}

fn scored_graph(heads: Heads, rotated: usize, window: Option<usize>, cap: Option<f32>) -> Graph {
    let hidden = 44;
    let width = heads.heads * heads.head_dim;
    let mut g = Graph::new(Rope::plain(1e4, rotated));
    let table = g.weight(matrix("table", 50, hidden)).unwrap();
    let qkv = g.weight(matrix("qkv", width + 2 * heads.kv_heads * heads.head_dim, hidden)).unwrap();
    let o = g.weight(matrix("o", hidden, width)).unwrap();
    let gate_up = g.weight(matrix("gate_up", 2 * 70, hidden)).unwrap();
    let down = g.weight(matrix("down", hidden, 70)).unwrap();
    let norms = ["a", "b", "c"].map(|n| g.vector(vector(n, hidden)));
    let x = g.embed("x", table);
    let h = g.rms_norm("h", x, norms[0], 1e-5, Rows::Tokens).unwrap();
    let h = g.linear("qkv", h, qkv, None).unwrap();
    let q = g.rope_kv("q", h, heads).unwrap();
    let scores = Scores { scale: 1.0 / (heads.head_dim as f32).sqrt(), window, cap };
    let h = g.attention_by("attn", q, scores).unwrap();
    let h = g.linear("o", h, o, None).unwrap();
    let x = g.add("x2", x, h).unwrap();
    let h = g.rms_norm("h2", x, norms[1], 1e-5, Rows::Tokens).unwrap();
    let h = g.linear("gate_up", h, gate_up, None).unwrap();
    let h = g.glu("act", h, Nonlinearity::Silu).unwrap();
    let h = g.linear("down", h, down, None).unwrap();
    let x = g.add("x3", x, h).unwrap();
    let x = g.rms_norm("norm", x, norms[2], 1e-5, Rows::Outputs).unwrap();
    g.linear("logits", x, table, None).unwrap();
    g
}

const HEADS: [(usize, usize, usize, usize); 7] = [
    // heads, kv_heads, head_dim, rotated
    (2, 2, 24, 24),
    (3, 1, 64, 64),
    (9, 3, 64, 64),
    (4, 1, 128, 128),
    (8, 1, 80, 80),
    (16, 1, 8, 4),
    (2, 1, 256, 256),
];

/// Prompts that end at, before and after the edges of pages, then single tokens across one.
fn positions() -> Vec<Batch> {
    let ids: Vec<u32> = (0..140).map(|i| (i * 31 % 50) as u32).collect();
    let mut batches = Vec::new();
    let mut at = 0;
    for n in [1, 1, 61, 1, 1, 1, 62, 1, 1] {
        batches.push(Batch::sequence(&ids[at..at + n], at, 0).with_all_outputs());
        at += n;
    }
    batches
}

#[test]
fn attention_equals_the_reference_at_page_edges() {
    let Some(gpu) = gpu() else { return };
    for (heads, kv_heads, head_dim, rotated) in HEADS {
        let rig =
            Rig::new(attention_graph(Heads { heads, kv_heads, head_dim }, rotated), WeightFormat::F32, 7);
        for kv in KvFormat::ALL {
            // Blocks of two words, of one and a half, of less than one, and of eight.
            let blocks = matches!(kv, KvFormat::Q8_0 | KvFormat::Q4_0);
            if blocks && ![(3, 64), (8, 80), (16, 8), (2, 256)].contains(&(heads, head_dim)) {
                continue;
            }
            let batches = positions();
            let mut reference = Reference::new(&rig.graph, &rig, kv).unwrap();
            let expected: Vec<Vec<f32>> = batches.iter().map(|b| reference.logits(b).unwrap()).collect();
            let mut all = vec![gpu.caps().clone()];
            // Tiles, as GPUs have them, with heads that fill a tile and that do not.
            if [(9, 64), (16, 8), (2, 256)].contains(&(heads, head_dim)) {
                all.push(Caps { subgroup: None, kind: AdapterKind::Other, ..gpu.caps().clone() });
            }
            // Reductions without subgroups: the shapes differ in nothing that matters to them.
            if [64, 8].contains(&head_dim) && kv_heads == 1 {
                all.push(Caps { subgroup: None, ..gpu.caps().clone() });
            }
            for caps in all {
                let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &exact(62, 62, kv)).unwrap();
                for end in 1..=batches.len() {
                    if end != batches.len() && end % 3 != 0 {
                        continue;
                    }
                    let found = rig.run(&gpu, &caps, &plan, &batches[..end], 160);
                    let tolerance = if kv == KvFormat::F32 { 1e-4 } else { 4e-3 };
                    let what = format!("{heads} heads, {kv_heads} kv, dim {head_dim}, {kv}, step {end}");
                    assert_close(&what, &found, &expected[end - 1], tolerance);
                }
            }
        }
    }
}

/// Windows within a page, of a page and a position more, with scores that are capped and not, for tokens of one sequence in one step
/// and in several, by every attention that an adapter may get.
#[test]
fn windows_hide_what_lies_before_them() {
    let Some(gpu) = gpu() else { return };
    for (heads, kv_heads, head_dim) in [(9, 3, 64), (16, 1, 8), (2, 1, 256)] {
        for (window, cap) in [(1, None), (40, None), (64, Some(0.7)), (65, None), (1000, Some(0.2))] {
            let heads = Heads { heads, kv_heads, head_dim };
            let rig = Rig::new(scored_graph(heads, 8, Some(window), cap), WeightFormat::F32, 7);
            let batches = positions();
            let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
            let expected: Vec<Vec<f32>> = batches.iter().map(|b| reference.logits(b).unwrap()).collect();
            let tiles = Caps { subgroup: None, kind: AdapterKind::Other, ..gpu.caps().clone() };
            for caps in [gpu.caps().clone(), tiles] {
                let options = exact(62, 62, KvFormat::F32);
                let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
                for end in [3, 7, batches.len()] {
                    let found = rig.run(&gpu, &caps, &plan, &batches[..end], 160);
                    let what = format!("{heads:?}, window of {window}, cap {cap:?}, step {end}");
                    assert_close(&what, &found, &expected[end - 1], 1e-4);
                }
            }
        }
    }
}

/// Queries and keys normalised head by head, by the same factors and by their own, about their means
/// and not, and all heads together, in rows that are padded.
#[test]
fn normalised_heads_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 10 };
    let width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
    for (factors, spans, centred) in
        [([10, 10], Spans::Heads, false), ([40, 20], Spans::Heads, true), ([40, 20], Spans::All, false)]
    {
        let mut g = Graph::new(Rope::plain(1e4, 2));
        let table = g.weight(matrix("table", 50, width)).unwrap();
        let [q, k] = [("q", factors[0]), ("k", factors[1])].map(|(name, len)| g.vector(vector(name, len)));
        let gain = g.vector(vector("gain", width));
        let x = g.embed("x", table);
        let x = g.head_norm("norms", x, HeadNorm { q, k, spans, centred, eps: 1e-5 }, heads).unwrap();
        g.rms_norm("norm", x, gain, 1e-5, Rows::Outputs).unwrap();
        let rig = Rig::new(g, WeightFormat::F32, 3);
        let batch = batch(5, 50, 1);
        let expected = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap().logits(&batch).unwrap();
        for caps in [gpu.caps().clone(), Caps { subgroup: None, ..gpu.caps().clone() }] {
            let options = exact(5, 5, KvFormat::F32);
            let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
            let found = rig.run(&gpu, &caps, &plan, std::slice::from_ref(&batch), 64);
            assert_close(&format!("{factors:?} factors, {spans:?}"), &found, &expected, 1e-4);
        }
    }
}

/// Rows normalised about their means, of all tokens and of outputs, of widths that are padded: far from
/// zero, where squares alone would lose the differences.
#[test]
fn layer_norms_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    for width in [70, 64, 200] {
        let mut g = Graph::new(Rope::plain(1e4, 2));
        let table = g.weight(matrix("table", 50, width)).unwrap();
        let [far, w, b, w2, b2] = ["far", "w", "b", "w2", "b2"].map(|name| g.vector(vector(name, width)));
        let x = g.embed("x", table);
        let x = g.layer_norm("far", x, [w, far], 1e-5, Rows::Tokens).unwrap();
        let x = g.layer_norm("all", x, [w, b], 1e-5, Rows::Tokens).unwrap();
        g.layer_norm("some", x, [w2, b2], 1e-5, Rows::Outputs).unwrap();
        let mut rig = Rig::new(g, WeightFormat::F32, 3);
        rig.set_vector(far.0, vec![10.0; width]);
        let mut batch = batch(5, 50, 1);
        batch.outputs = vec![1, 4];
        let expected = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap().logits(&batch).unwrap();
        for caps in [gpu.caps().clone(), Caps { subgroup: None, ..gpu.caps().clone() }] {
            let options = exact(5, 2, KvFormat::F32);
            let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
            let found = rig.run(&gpu, &caps, &plan, std::slice::from_ref(&batch), 64);
            assert_close(&format!("width {width}"), &found, &expected, 1e-4);
        }
    }
}

/// Gates and single values of every function, before and after fusion, and capped logits: of a size at
/// which an exponential would overflow, too.
#[test]
fn nonlinearities_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    for act in Nonlinearity::ALL {
        for scale in [1.0, 300.0] {
            let mut g = Graph::new(Rope::plain(1e4, 2));
            let table = g.weight(matrix("table", 50, 40)).unwrap();
            let both = g.weight(matrix("both", 2 * 70, 40)).unwrap();
            let up = g.weight(matrix("up", 33, 70)).unwrap();
            let norm = g.vector(vector("norm", 33));
            let x = g.embed_scaled("x", table, scale);
            let x = g.linear("both", x, both, None).unwrap();
            let x = g.glu("gated", x, act).unwrap();
            let x = g.linear("up", x, up, None).unwrap();
            let x = g.activate("act", x, act);
            let x = g.rms_norm("norm", x, norm, 1e-5, Rows::Outputs).unwrap();
            g.soft_cap("capped", x, 0.8);
            let rig = Rig::new(g, WeightFormat::F32, 3);
            let all = batch(5, 50, 1);
            let expected = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap().logits(&all).unwrap();
            for fuse in [false, true] {
                let options = PlanOptions { fuse, ..exact(5, 5, KvFormat::F32) };
                let plan = lower(&rig.graph, &rig.layouts(gpu.caps()), gpu.caps(), &options).unwrap();
                let found = rig.run(&gpu, gpu.caps(), &plan, std::slice::from_ref(&all), 64);
                let what = format!("{} at {scale}, fused {fuse}", act.name());
                assert_close(&what, &found, &expected, 1e-4);
            }
        }
    }
}

/// Rows of all tokens and of outputs, of a width that is padded.
#[test]
fn permuted_rows_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let width = 70;
    let table = g.weight(matrix("table", 50, width)).unwrap();
    let [order, back, norm] = ["order", "back", "norm"].map(|name| g.vector(vector(name, width)));
    let head = g.weight(matrix("head", 40, width)).unwrap();
    let x = g.embed("x", table);
    let x = g.permute("mixed", x, order).unwrap();
    let x = g.rms_norm("norm", x, norm, 1e-5, Rows::Outputs).unwrap();
    let x = g.permute("back", x, back).unwrap();
    g.linear("y", x, head, None).unwrap();
    let mut rig = Rig::new(g, WeightFormat::F32, 3);
    rig.set_vector(order.0, (0..width).map(|i| (i * 33 % width) as f32).collect());
    rig.set_vector(back.0, (0..width).rev().map(|i| i as f32).collect());
    let mut batch = batch(5, 50, 1);
    batch.outputs = vec![1, 4];
    let expected = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap().logits(&batch).unwrap();
    let options = exact(5, 2, KvFormat::F32);
    let plan = lower(&rig.graph, &rig.layouts(gpu.caps()), gpu.caps(), &options).unwrap();
    let found = rig.run(&gpu, gpu.caps(), &plan, &[batch], 64);
    assert_close("permuted", &found, &expected, 1e-4);
}

/// Contexts that are split: fewer pages than splits, as many, and more, cold and deep.
#[test]
fn split_attention_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    // The GPU presets split; what they assume of subgroups does not matter here.
    let subgroup = gpu.caps().subgroup;
    let limits = (gpu.caps().max_storage_binding, gpu.caps().max_buffer);
    let coop = gpu.caps().coop;
    let caps = Caps { subgroup, coop, max_storage_binding: limits.0, max_buffer: limits.1, ..Caps::nvidia() };
    for (heads, kv_heads, head_dim, context, window) in [
        (9, 3, 64, 160, None),
        (9, 3, 64, 160, Some(70)),
        (6, 2, 10, 700, None),
        (6, 2, 10, 700, Some(300)),
        (40, 40, 8, 700, None),
        (2, 1, 256, 160, None),
    ] {
        let graph = scored_graph(Heads { heads, kv_heads, head_dim }, 8, window, None);
        let rig = Rig::new(graph, WeightFormat::F32, 7);
        let mut options = exact(2, 2, KvFormat::F32);
        options.context = context;
        let step = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
        let splits = step.launches.iter().find_map(|l| l.dispatch.variant.number("SPLITS"));
        assert!(splits.is_some_and(|s| s > 1), "{step}");
        options.max_tokens = 600;
        options.max_outputs = 1;
        let prompt = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
        assert!(!prompt.to_string().contains("split"), "{prompt}");
        let ids: Vec<u32> = (0..context as u32).map(|i| i * 31 % 50).collect();
        for start in [0, 1, 63, 64, 130, context - 3] {
            let first = Batch::sequence(&ids[..start], 0, 0);
            let next = Batch::sequence(&ids[start..start + 2], start, 0).with_all_outputs();
            let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
            if start > 0 {
                reference.run(&first).unwrap();
            }
            let expected = reference.logits(&next).unwrap();
            let mut pieces: Vec<(&wgllama::plan::Plan, Batch)> = Vec::new();
            for piece in ids[..start].chunks(600).enumerate() {
                pieces.push((&prompt, Batch::sequence(piece.1, piece.0 * 600, 0)));
            }
            pieces.push((&step, next));
            let found = rig.run_plans(&gpu, &caps, &pieces, context);
            assert_close(&format!("{heads} heads, from {start}"), &found, &expected, 1e-4);
        }
    }
}

#[test]
fn plans_for_every_adapter_equal_the_reference_on_this_one() {
    let Some(gpu) = gpu() else { return };
    let heads = Heads { heads: 6, kv_heads: 2, head_dim: 12 };
    for format in [WeightFormat::F32, WeightFormat::F16] {
        let rig = Rig::new(attention_graph(heads, 12), format, 3);
        let batches = [batch(30, 50, 1)];
        let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
        let expected = reference.logits(&batches[0]).unwrap();
        for (name, caps) in runnable(&gpu) {
            for fuse in [true, false] {
                let mut options = exact(30, 30, KvFormat::F32);
                options.fuse = fuse;
                let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
                let found = rig.run(&gpu, &caps, &plan, &batches, 64);
                assert_close(&format!("{name}, {format}, fuse {fuse}"), &found, &expected, 2e-4);
            }
        }
    }
}

/// embed -> router -> gated experts of `wide` -> weighted sum + residual.
fn expert_graph(experts: usize, chosen: usize, normalised: bool, wide: usize) -> Graph {
    let hidden = 44;
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 50, hidden)).unwrap();
    let router = g.weight(matrix("router", experts, hidden)).unwrap();
    let mut of_all = |name: &str, parts: &[&str], rows: usize, cols: usize| {
        let each = |_| parts.iter().map(|part| matrix(part, rows, cols).parts.remove(0));
        let spec = WeightSpec {
            rows: experts * parts.len() * rows,
            parts: (0..experts).flat_map(each).collect(),
            interleaved: parts.len() > 1,
            matrices: experts,
            ..matrix(name, rows, cols)
        };
        g.weight(spec).unwrap()
    };
    let both = of_all("both", &["gate", "up"], wide, hidden);
    let down = of_all("down", &["down"], hidden, wide);
    let norm = g.vector(vector("norm", hidden));
    let x = g.embed("x", table);
    let logits = g.linear("router", x, router, None).unwrap();
    let routes = g.route("routes", logits, chosen, normalised).unwrap();
    let h = g.expert_linear("both", x, routes, both).unwrap();
    let h = g.glu("act", h, Nonlinearity::Silu).unwrap();
    let h = g.expert_linear("down", h, routes, down).unwrap();
    let h = g.combine("combined", h, routes).unwrap();
    let x = g.add("sum", x, h).unwrap();
    let x = g.rms_norm("norm", x, norm, 1e-5, Rows::Outputs).unwrap();
    g.linear("logits", x, table, None).unwrap();
    g
}

/// Few and many tokens by every product that an adapter may get, whole and in shards, with all experts
/// chosen and a few, and with widths that are padded; and more experts than a workgroup has invocations.
#[test]
fn experts_equal_the_reference() {
    let Some(gpu) = gpu() else { return };
    for (experts, chosen, normalised, wide, format) in [
        (5, 2, true, 40, WeightFormat::F32),
        (4, 4, false, 70, WeightFormat::Q4_0),
        (140, 8, true, 12, WeightFormat::Q8_0),
    ] {
        let rig = Rig::new(expert_graph(experts, chosen, normalised, wide), format, 5);
        for tokens in [1, 100] {
            // One of them by all that adapters get, the others by what one CPU and one GPU get.
            let first = experts == 5;
            let batches = [batch(tokens, 50, 2)];
            let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
            let expected = reference.logits(&batches[0]).unwrap();
            let mut all = if first { runnable(&gpu) } else { vec![("here", gpu.caps().clone())] };
            all.push(("rows", in_rows(&gpu)));
            let each = rig.layouts(gpu.caps())[2].shards[0].planes.bytes() as u64 / experts as u64;
            let small = Caps { max_storage_binding: (3 * each).max(8 << 10), ..gpu.caps().clone() };
            if first {
                assert!(rig.layouts(&small)[2].shards.len() > 1);
                all.extend([
                    ("shards", small.clone()),
                    ("shards in rows", Caps { kind: AdapterKind::Discrete, ..small }),
                ]);
            }
            for (name, caps) in all {
                for fuse in [true, false] {
                    if !fuse && name != "rows" {
                        continue;
                    }
                    let options = PlanOptions { fuse, ..exact(tokens, tokens, KvFormat::F32) };
                    let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
                    let found = rig.run(&gpu, &caps, &plan, &batches, 128);
                    let what = format!("{chosen} of {experts}, {tokens} tokens, {name}, fused {fuse}");
                    assert_close(&what, &found, &expected, SUM_TOLERANCE);
                }
            }
        }
    }
}

#[test]
fn a_ragged_batch_equals_its_sequences_run_alone() {
    let Some(gpu) = gpu() else { return };
    let heads = Heads { heads: 6, kv_heads: 2, head_dim: 12 };
    let rig = Rig::new(attention_graph(heads, 12), WeightFormat::F32, 5);
    let token = |id, position, sequence| Token { id, position, sequence };
    // First a prompt for each of three sequences, then one step that extends all of them.
    let mut prompts = Batch::default();
    for (sequence, n) in [(0, 5), (1, 70), (2, 1)] {
        prompts.tokens.extend((0..n).map(|i| token((i * 7 + sequence) % 50, i, sequence)));
    }
    let next = [token(1, 5, 0), token(2, 70, 1), token(3, 71, 1), token(4, 1, 2)];
    let step = Batch { tokens: next.to_vec(), outputs: vec![3, 0, 2] };
    let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
    reference.run(&prompts).unwrap();
    let expected = reference.logits(&step).unwrap();
    for (name, caps) in runnable(&gpu) {
        let options = exact(80, 8, KvFormat::F32);
        let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
        let found = rig.run(&gpu, &caps, &plan, &[prompts.clone(), step.clone()], 128);
        assert_close(&format!("ragged, {name}"), &found, &expected, 1e-4);
    }
}

#[test]
fn a_matrix_in_shards_equals_the_reference() {
    let Some(gpu) = gpu() else { return };
    // Bindings of 16 KiB: the table and every matrix come in several pieces.
    let caps = Caps { max_storage_binding: 16 << 10, ..gpu.caps().clone() };
    let heads = Heads { heads: 6, kv_heads: 2, head_dim: 12 };
    for format in [WeightFormat::F32, WeightFormat::BF16] {
        let rig = Rig::new(attention_graph(heads, 12), format, 9);
        assert!(rig.layouts(&caps).iter().filter(|l| l.shards.len() > 1).count() >= 2);
        let batches = [batch(9, 50, 4)];
        let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
        let expected = reference.logits(&batches[0]).unwrap();
        let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &exact(9, 9, KvFormat::F32)).unwrap();
        let found = rig.run(&gpu, &caps, &plan, &batches, 64);
        assert_close(format.name(), &found, &expected, 2e-4);
    }
}

#[test]
fn more_rows_than_one_dimension_holds() {
    let Some(gpu) = gpu() else { return };
    // 200,000 rows: a vocabulary larger than 65,535 workgroups of one row.
    let rig = Rig::new(linear_graph(8, 200_000, false), WeightFormat::F16, 2);
    let caps = Caps { max_groups: 255, ..gpu.caps().clone() };
    let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &exact(1, 1, KvFormat::F32)).unwrap();
    let batch = batch(1, 11, 1);
    let mut reference = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap();
    let expected = reference.logits(&batch).unwrap();
    let found = run_rows(&rig, &gpu, &caps, &plan, &batch);
    assert_close("200,000 rows", &found, &expected, SUM_TOLERANCE);
}

#[test]
fn large_activations_do_not_overflow() {
    let Some(gpu) = gpu() else { return };
    // Weights of order 1e5 in the embedding; the residual stream carries them in f32.
    let heads = Heads { heads: 6, kv_heads: 2, head_dim: 12 };
    let rig = Rig::scaled(attention_graph(heads, 12), WeightFormat::F32, 5, 1e5);
    let batches = [batch(9, 50, 4)];
    for kv in KvFormat::ALL {
        let mut reference = Reference::new(&rig.graph, &rig, kv).unwrap();
        let expected = reference.logits(&batches[0]).unwrap();
        let plan = lower(&rig.graph, &rig.layouts(gpu.caps()), gpu.caps(), &exact(9, 9, kv)).unwrap();
        let found = rig.run(&gpu, gpu.caps(), &plan, &batches, 64);
        let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        assert!(found.iter().all(|v| v.is_finite()));
        assert_close(&format!("large, {kv}"), &found, &expected, 1e-2 * scale);
    }
}
