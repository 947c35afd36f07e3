//! Each rewrite rule: applies where it should, nowhere else, and the result equals the
//! reference run of the graph that it started from.

#[path = "support/rig.rs"]
mod rig;
mod support;

use rig::{Rig, matrix, vector};
use support::{assert_close, gpu};
use wgllama::graph::reference::Reference;
use wgllama::graph::{
    Batch, Graph, HeadNorm, Heads, NodeId, Op, Out, Part, Rope, RowOrder, Spans, WeightSpec,
};
use wgllama::kernels::tuning::Tiling;
use wgllama::nonlinearity::Nonlinearity;
use wgllama::plan::fuse::{self, RULES, Target};
use wgllama::plan::{PlanOptions, WeightLayout, lower};
use wgllama::shape::Rows;
use wgllama::{Caps, KvFormat, WeightFormat};

/// embed -> norm -> linear -> (+ residual, in the given order) -> norm -> logits.
fn residual(bias: bool, linear_first: bool) -> Graph {
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 20, 40)).unwrap();
    let w = g.weight(matrix("w", 40, 40)).unwrap();
    let norm = g.vector(vector("norm", 40));
    let bias = bias.then(|| g.vector(vector("bias", 40)));
    let x = g.embed("x", table);
    let h = g.rms_norm("h", x, norm, 1e-5, Rows::Tokens).unwrap();
    let h = g.linear("w", h, w, bias).unwrap();
    let sum = if linear_first { g.add("sum", h, x) } else { g.add("sum", x, h) }.unwrap();
    let y = g.rms_norm("y", sum, norm, 1e-5, Rows::Outputs).unwrap();
    g.linear("logits", y, table, None).unwrap();
    g
}

/// All rules, with layouts for the adapter at hand or for the least one.
fn fuse(graph: &Graph, keep: &[String]) -> Graph {
    let layouts = layouts(graph);
    fuse::fuse(graph, &target(keep, &layouts))
}

const GPU: Caps = Caps::nvidia();

/// Everything that an adapter may be given, for twenty tokens.
fn target<'a>(keep: &'a [String], layouts: &'a [WeightLayout]) -> Target<'a> {
    let tiling = Some(Tiling { tokens: 20, groups: 128 });
    Target {
        keep,
        layouts,
        norm: true,
        head_norm: true,
        glu: true,
        caps: &GPU,
        attention_groups: 64,
        pages: 8,
        tiling,
    }
}

fn layouts(graph: &Graph) -> Vec<WeightLayout> {
    let layout = |w: &WeightSpec| {
        WeightLayout::new(w, &vec![WeightFormat::F32; w.parts.len()], &Caps::baseline()).unwrap()
    };
    graph.weights.iter().map(layout).collect()
}

fn count(graph: &Graph, wanted: fn(&Op) -> bool) -> usize {
    graph.nodes.iter().filter(|n| wanted(&n.op)).count()
}

/// Runs `graph` with its fusions, for one token and for several, and compares with the
/// reference run of the graph as it is.
fn equals_the_reference(what: &str, graph: Graph, caps: &Caps, variant: &str) {
    let Some(gpu) = gpu() else { return };
    if caps.subgroup.is_some() && gpu.caps().subgroup.is_none() {
        eprintln!("skipped: the adapter has no subgroups");
        return;
    }
    for format in [WeightFormat::F32, WeightFormat::Q8_0] {
        let rig = Rig::new(graph.clone(), format, 11);
        // Two tokens are several, and compile sooner than more.
        for ids in [&[3u32][..], &[3, 7]] {
            let batch = Batch::sequence(ids, 0, 0).with_all_outputs();
            let expected = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap().logits(&batch).unwrap();
            let options = PlanOptions::new(ids.len(), ids.len(), KvFormat::F32);
            let plan = lower(&rig.graph, &rig.layouts(caps), caps, &options).unwrap();
            if ids.len() == 1 {
                assert!(plan.to_string().contains(variant), "{what}: no {variant} in\n{plan}");
            }
            let found = rig.run(&gpu, caps, &plan, &[batch], 64);
            assert_close(&format!("{what}, {format}, {} tokens", ids.len()), &found, &expected, 2e-4);
        }
    }
}

/// What the fused kernels are chosen for: teams of threads, of subgroups and of workgroups.
fn adapters() -> [Caps; 3] {
    let limits = |caps: Caps| Caps { max_storage_binding: 128 << 20, ..caps };
    [limits(Caps::lavapipe()), limits(Caps { coop: None, ..Caps::nvidia() }), Caps::baseline()]
}

#[test]
fn a_residual_goes_into_its_linear() {
    for (bias, linear_first) in [(false, false), (true, false), (false, true), (true, true)] {
        let graph = residual(bias, linear_first);
        let fused = fuse(&graph, &[]);
        assert_eq!(count(&fused, |op| matches!(op, Op::FusedLinear { out: Out::Add, .. })), 1);
        assert_eq!(count(&fused, |op| matches!(op, Op::Add { .. })), 0);
        equals_the_reference("residual", graph, &Caps::lavapipe(), ",add");
    }
}

/// embed -> norm -> linear -> norm of the outputs -> logits.
fn normed() -> Graph {
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 20, 64)).unwrap();
    let w = g.weight(matrix("w", 64, 64)).unwrap();
    let norm = g.vector(vector("norm", 64));
    let bias = g.vector(vector("bias", 64));
    let x = g.embed("x", table);
    let h = g.rms_norm("h", x, norm, 1e-5, Rows::Tokens).unwrap();
    let h = g.linear("w", h, w, Some(bias)).unwrap();
    let y = g.rms_norm("y", h, norm, 1e-5, Rows::Outputs).unwrap();
    g.linear("logits", y, table, None).unwrap();
    g
}

#[test]
fn a_norm_goes_into_its_linear() {
    let graph = normed();
    // The norm of the outputs picks rows and stays.
    assert_eq!(count(&fuse(&graph, &[]), |op| matches!(op, Op::RmsNorm { .. })), 1);
    for caps in adapters() {
        let variant = if wgllama::kernels::tuning::norm_prologue(&caps, 1) { ",norm" } else { "rms_norm" };
        equals_the_reference("norm", graph.clone(), &caps, variant);
    }
}

#[test]
fn a_norm_of_the_residual_that_is_added_to_stays() {
    // The sum is in place: no team may read x while another adds to it.
    let fused = fuse(&residual(false, false), &[]);
    assert!(fused.find("h").is_some());
    assert_eq!(count(&fused, |op| matches!(op, Op::FusedLinear { out: Out::Add, norm: None, .. })), 1);
}

#[test]
fn a_norm_with_two_users_or_kept_stays() {
    let mut g = normed();
    let (h, w) = (g.find("h").unwrap(), g.find("w").unwrap());
    g.add("late", h, w).unwrap();
    assert!(fuse(&g, &[]).find("h").is_some());
    assert!(fuse(&normed(), &["h".to_string()]).find("h").is_some());
}

/// embed -> norm -> linear -> norm + residual -> norm of the outputs -> logits, as Gemma and OLMo have it.
fn normed_after(late: bool) -> Graph {
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 20, 44)).unwrap();
    let w = g.weight(matrix("w", 44, 44)).unwrap();
    let [before, after, last] = ["before", "after", "last"].map(|name| g.vector(vector(name, 44)));
    let x = g.embed("x", table);
    let h = g.rms_norm("h", x, before, 1e-5, Rows::Tokens).unwrap();
    let h = g.linear("w", h, w, None).unwrap();
    let h = g.rms_norm("after", h, after, 1e-5, Rows::Tokens).unwrap();
    let mut sum = g.add("sum", x, h).unwrap();
    if late {
        sum = g.add("late", sum, h).unwrap();
    }
    let y = g.rms_norm("y", sum, last, 1e-5, Rows::Outputs).unwrap();
    g.linear("logits", y, table, None).unwrap();
    g
}

#[test]
fn a_residual_goes_into_the_norm_that_is_added_to_it() {
    let graph = normed_after;
    let fused = fuse(&graph(false), &[]);
    assert_eq!(count(&fused, |op| matches!(op, Op::RmsNorm { add: true, .. })), 1);
    assert_eq!(count(&fused, |op| matches!(op, Op::Add { .. })), 0);
    for caps in adapters() {
        equals_the_reference("added norm", graph(false), &caps, ",add,");
    }
    // Another user of the norm keeps it.
    assert_eq!(count(&fuse(&graph(true), &[]), |op| matches!(op, Op::RmsNorm { add: true, .. })), 0);
    let kept = fuse(&graph(false), &["after".to_string()]);
    assert_eq!(count(&kept, |op| matches!(op, Op::RmsNorm { add: true, .. })), 0);
}

/// A norm that several linears read, and nothing else, goes into each of them.
#[test]
fn a_norm_goes_into_all_of_its_linears() {
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 20, 64)).unwrap();
    let [a, b] = ["a", "b"].map(|name| g.weight(matrix(name, 64, 64)).unwrap());
    let [norm, last] = ["norm", "last"].map(|name| g.vector(vector(name, 64)));
    let x = g.embed("x", table);
    let h = g.rms_norm("h", x, norm, 1e-5, Rows::Tokens).unwrap();
    let [a, b] = [("a", a), ("b", b)].map(|(name, w)| g.linear(name, h, w, None).unwrap());
    let sum = g.add("sum", a, b).unwrap();
    let y = g.rms_norm("y", sum, last, 1e-5, Rows::Outputs).unwrap();
    g.linear("logits", y, table, None).unwrap();
    let fused = fuse(&g, &[]);
    assert_eq!(count(&fused, |op| matches!(op, Op::FusedLinear { norm: Some(_), .. })), 2);
    assert!(fused.find("h").is_none());
    equals_the_reference("two linears", g, &Caps::lavapipe(), ",norm");
}

/// embed -> gate and up -> SwiGLU -> down -> logits.
fn gated(wide: usize, bias: bool) -> Graph {
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 20, 64)).unwrap();
    let part =
        |tensor: &str| Part { tensor: tensor.to_string(), rows: wide, order: RowOrder::Stored, within: None };
    let gate_up = WeightSpec {
        name: "gate_up".into(),
        rows: 2 * wide,
        cols: 64,
        parts: vec![part("gate"), part("up")],
        interleaved: true,
        matrices: 1,
    };
    let gate_up = g.weight(gate_up).unwrap();
    let down = g.weight(matrix("down", 64, wide)).unwrap();
    let bias = bias.then(|| g.vector(vector("bias", 2 * wide)));
    let norm = g.vector(vector("norm", 64));
    let x = g.embed("x", table);
    let h = g.linear("gate_up", x, gate_up, bias).unwrap();
    let h = g.glu("act", h, Nonlinearity::Silu).unwrap();
    let h = g.linear("down", h, down, None).unwrap();
    let y = g.rms_norm("y", h, norm, 1e-5, Rows::Outputs).unwrap();
    g.linear("logits", y, table, None).unwrap();
    g
}

#[test]
fn a_swiglu_goes_into_its_linear() {
    for caps in adapters() {
        for (wide, bias) in [(100, false), (96, true), (33, true)] {
            let graph = gated(wide, bias);
            let fused = fuse(&graph, &[]);
            assert_eq!(count(&fused, |op| *op == Op::Glu(Nonlinearity::Silu)), 0);
            assert_eq!(fused.nodes.len(), graph.nodes.len() - 1);
            equals_the_reference(&format!("swiglu {wide}"), graph, &caps, ",swiglu");
        }
    }
}

#[test]
fn a_swiglu_of_shards_that_do_not_alternate_stays() {
    let graph = gated(96, false);
    let mut layouts = layouts(&graph);
    let formats = [WeightFormat::F32, WeightFormat::Q8_0];
    layouts[1] = WeightLayout::new(&graph.weights[1], &formats, &Caps::baseline()).unwrap();
    let fused = fuse::fuse(&graph, &target(&[], &layouts));
    assert_eq!(count(&fused, |op| *op == Op::Glu(Nonlinearity::Silu)), 1);
}

#[test]
fn a_residual_with_another_use_afterwards_stays() {
    let mut g = residual(false, false);
    let (x, y) = (g.find("x").unwrap(), g.find("sum").unwrap());
    g.add("late", x, y).unwrap();
    assert_eq!(count(&fuse(&g, &[]), |op| matches!(op, Op::FusedLinear { out: Out::Add, .. })), 0);
}

#[test]
fn a_linear_with_another_use_stays() {
    let mut g = residual(false, false);
    let (w, sum) = (g.find("w").unwrap(), g.find("sum").unwrap());
    g.add("late", w, sum).unwrap();
    let fused = fuse(&g, &[]);
    assert_eq!(count(&fused, |op| matches!(op, Op::FusedLinear { out: Out::Add, .. })), 0);
}

#[test]
fn what_is_to_be_kept_stays() {
    let graph = residual(false, false);
    for kept in ["w", "x"] {
        let fused = fuse(&graph, &[kept.to_string()]);
        assert!(fused.find(kept).is_some());
        assert_eq!(count(&fused, |op| matches!(op, Op::FusedLinear { out: Out::Add, .. })), 0, "{kept}");
    }
    assert!(fuse(&graph, &["sum".to_string()]).find("sum").is_some());
}

#[test]
fn a_sum_of_a_linear_with_itself_stays() {
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 20, 40)).unwrap();
    let w = g.weight(matrix("w", 40, 40)).unwrap();
    let x = g.embed("x", table);
    let h = g.linear("w", x, w, None).unwrap();
    g.add("sum", h, h).unwrap();
    assert_eq!(fuse(&g, &[]), g);
}

#[test]
fn a_linear_of_the_residual_itself_stays() {
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 20, 40)).unwrap();
    let w = g.weight(matrix("w", 40, 40)).unwrap();
    let x = g.embed("x", table);
    let h = g.linear("w", x, w, None).unwrap();
    g.add("sum", x, h).unwrap();
    assert_eq!(fuse(&g, &[]), g);
}

#[test]
fn norms_of_heads_go_into_their_rotation() {
    for own in [false, true] {
        let graph = normed_heads(own);
        let fused = fuse(&graph, &[]);
        assert!(fused.find("qk_norm").is_none());
        assert_eq!(count(&fused, |op| matches!(op, Op::RopeKv { norm: Some(_), .. })), 1);
        equals_the_reference("heads", graph.clone(), &adapters()[1], "rope_kv[thread,kv_f32,norm");
        assert!(fuse(&graph, &["qk_norm".to_string()]).find("qk_norm").is_some());
    }
}

/// embed -> q, k, v -> rope -> attention -> o -> logits.
fn attended() -> Graph {
    attended_by(12, |_, qkv| qkv)
}

/// The same with heads that are normalised, by factors that they share or by their own, and turn in part.
fn normed_heads(own: bool) -> Graph {
    attended_by(8, |g, qkv| {
        let factors = |(name, all)| vector(name, if own { all } else { HEADS.head_dim });
        let [q, k] = [("qn", 72), ("kn", 24)].map(factors).map(|spec| g.vector(spec));
        let norm = HeadNorm { q, k, spans: Spans::Heads, centred: false, eps: 1e-5 };
        g.head_norm("qk_norm", qkv, norm, HEADS).unwrap()
    })
}

const HEADS: Heads = Heads { heads: 6, kv_heads: 2, head_dim: 12 };

fn attended_by(rotated: usize, heads: impl Fn(&mut Graph, NodeId) -> NodeId) -> Graph {
    let mut g = Graph::new(Rope::plain(1e4, rotated));
    let table = g.weight(matrix("table", 20, 64)).unwrap();
    let qkv = g.weight(matrix("qkv", 120, 64)).unwrap();
    let o = g.weight(matrix("o", 64, 72)).unwrap();
    let norm = g.vector(vector("norm", 64));
    let x = g.embed("x", table);
    let h = g.linear("qkv", x, qkv, None).unwrap();
    let h = heads(&mut g, h);
    let q = g.rope_kv("q", h, HEADS).unwrap();
    let h = g.attention("attn", q, 0.3).unwrap();
    let h = g.linear("o", h, o, None).unwrap();
    let y = g.rms_norm("y", h, norm, 1e-5, Rows::Outputs).unwrap();
    g.linear("logits", y, table, None).unwrap();
    g
}

#[test]
fn attention_is_split_to_fill_the_adapter() {
    let graph = attended();
    let fused = fuse(&graph, &[]);
    assert_eq!(fused.nodes.len(), graph.nodes.len() + 1);
    // Two KV heads of three query heads: two workgroups, so 32 splits make 64, but there are
    // only eight pages.
    assert_eq!(count(&fused, |op| matches!(op, Op::AttentionSplit { splits: 8, .. })), 1);
    let merged = &fused.nodes[fused.find("attn").unwrap().0];
    assert!(matches!(merged.op, Op::AttentionMerge { splits: 8, .. }));
    equals_the_reference("attention", graph, &adapters()[1], "attention_merge");
}

#[test]
fn a_kept_attention_is_the_merged_one() {
    let fused = fuse(&attended(), &["attn".to_string()]);
    assert!(matches!(fused.nodes[fused.find("attn").unwrap().0].op, Op::AttentionMerge { .. }));
}

/// Linears of many columns and few rows: one that is added, one of gates and ups, one that is
/// stored, and a short one, which is then added.
fn long() -> Graph {
    let wide = 1568;
    let mut g = Graph::new(Rope::plain(1e4, 2));
    let table = g.weight(matrix("table", 20, wide)).unwrap();
    let w = g.weight(matrix("w", wide, wide)).unwrap();
    let part =
        |tensor: &str| Part { tensor: tensor.to_string(), rows: 33, order: RowOrder::Stored, within: None };
    let gate_up = WeightSpec {
        name: "gate_up".into(),
        rows: 66,
        cols: wide,
        parts: vec![part("gate"), part("up")],
        interleaved: true,
        matrices: 1,
    };
    let gate_up = g.weight(gate_up).unwrap();
    let down = g.weight(matrix("down", 40, 33)).unwrap();
    let plain = g.weight(matrix("plain", 40, wide)).unwrap();
    let head = g.weight(matrix("head", 20, 40)).unwrap();
    let norm = g.vector(vector("norm", 40));
    let x = g.embed("x", table);
    let gain = g.vector(vector("gain", wide));
    let h = g.rms_norm("h", x, gain, 1e-5, Rows::Tokens).unwrap();
    let h = g.linear("w", h, w, None).unwrap();
    let x = g.add("sum", x, h).unwrap();
    let y = g.linear("plain", x, plain, None).unwrap();
    let h = g.linear("gate_up", x, gate_up, None).unwrap();
    let h = g.glu("act", h, Nonlinearity::Silu).unwrap();
    let h = g.linear("down", h, down, None).unwrap();
    let y = g.add("both", h, y).unwrap();
    let y = g.rms_norm("y", y, norm, 1e-5, Rows::Outputs).unwrap();
    g.linear("logits", y, head, None).unwrap();
    g
}

#[test]
fn long_columns_are_shared_to_fill_the_adapter() {
    let graph = long();
    let layouts = layouts(&graph);
    let fused = fuse::fuse(&graph, &Target { norm: false, ..target(&[], &layouts) });
    for (name, expected) in [("sum", Out::Add), ("act", Out::Glu(Nonlinearity::Silu)), ("plain", Out::Store)]
    {
        let op = &fused.nodes[fused.find(name).unwrap().0].op;
        // 1568 columns are three times as many as are worth a merge.
        assert!(matches!(*op, Op::LinearMerge { splits: 3, out } if out == expected), "{name}: {op:?}");
    }
    assert_eq!(count(&fused, |op| matches!(op, Op::FusedLinear { .. })), 1, "the short one stays");

    let Some(gpu) = gpu() else { return };
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % 20).collect();
    let batch = Batch::sequence(&ids, 0, 0).with_all_outputs();
    // Each matrix in one shard, and in several.
    for max_storage_binding in [64 << 20, 1 << 20] {
        let caps = Caps { max_storage_binding, ..Caps::baseline() };
        let rig = Rig::new(graph.clone(), WeightFormat::Q8_0, 11);
        let expected = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap().logits(&batch).unwrap();
        let options = PlanOptions::new(ids.len(), ids.len(), KvFormat::F32);
        let plan = lower(&rig.graph, &rig.layouts(&caps), &caps, &options).unwrap();
        assert_eq!(
            plan.launches.iter().filter(|l| l.dispatch.variant.kernel().name == "gemm_merge").count(),
            3
        );
        let found = rig.run(&gpu, &caps, &plan, std::slice::from_ref(&batch), 64);
        assert_close("shared columns", &found, &expected, 2e-4);
    }
}

#[test]
fn inputs_still_come_before_their_users() {
    for (name, rule) in RULES {
        let mut times = 0;
        for mut graph in [
            residual(true, true),
            gated(40, true),
            normed(),
            normed_after(false),
            attended(),
            normed_heads(true),
            long(),
        ] {
            let layouts = layouts(&graph);
            while rule(&mut graph, &target(&[], &layouts)) {
                times += 1;
            }
            for (i, node) in graph.nodes.iter().enumerate() {
                assert!(node.inputs.iter().all(|&NodeId(input)| input < i), "{name}: node {i}");
            }
        }
        assert!(times > 0, "{name} never applies");
    }
}
