//! Each rewrite rule: applies where it should, nowhere else, and the result equals the
//! reference run of the graph that it started from.

#[path = "support/rig.rs"]
mod rig;
mod support;

use rig::{Rig, matrix, vector};
use support::{assert_close, gpu};
use wgllama::graph::reference::Reference;
use wgllama::graph::{Batch, Graph, NodeId, Op, Rope};
use wgllama::plan::fuse::{RULES, fuse};
use wgllama::plan::{PlanOptions, lower};
use wgllama::shape::Rows;
use wgllama::{KvFormat, WeightFormat};

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

fn count(graph: &Graph, wanted: fn(&Op) -> bool) -> usize {
    graph.nodes.iter().filter(|n| wanted(&n.op)).count()
}

#[test]
fn a_residual_goes_into_its_linear() {
    let gpu = gpu();
    for (bias, linear_first) in [(false, false), (true, false), (false, true), (true, true)] {
        let graph = residual(bias, linear_first);
        let fused = fuse(&graph, &[]);
        assert_eq!(fused.nodes.len(), graph.nodes.len() - 1);
        assert_eq!(count(&fused, |op| matches!(op, Op::LinearAdd { .. })), 1);
        assert_eq!(count(&fused, |op| *op == Op::Add), 0);
        let Some(gpu) = &gpu else { continue };
        let rig = Rig::new(graph, WeightFormat::F32, 11);
        let batch = Batch::sequence(&[3, 7, 19, 0, 3], 0, 0).with_all_outputs();
        let expected = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap().logits(&batch).unwrap();
        let options = PlanOptions::new(5, 5, KvFormat::F32);
        let plan = lower(&rig.graph, &rig.layouts(gpu.caps()), gpu.caps(), &options).unwrap();
        assert!(plan.launches.iter().any(|l| l.dispatch.variant.to_string().contains("add")));
        let found = rig.run(gpu, gpu.caps(), &plan, &[batch], 64);
        assert_close("fused", &found, &expected, 1e-4);
    }
}

#[test]
fn a_residual_with_another_use_afterwards_stays() {
    let mut g = residual(false, false);
    let (x, y) = (g.find("x").unwrap(), g.find("sum").unwrap());
    g.add("late", x, y).unwrap();
    assert_eq!(fuse(&g, &[]).nodes.len(), g.nodes.len());
}

#[test]
fn a_linear_with_another_use_stays() {
    let mut g = residual(false, false);
    let (w, sum) = (g.find("w").unwrap(), g.find("sum").unwrap());
    g.add("late", w, sum).unwrap();
    let fused = fuse(&g, &[]);
    assert_eq!(count(&fused, |op| matches!(op, Op::LinearAdd { .. })), 0);
}

#[test]
fn what_is_to_be_kept_stays() {
    let graph = residual(false, false);
    for kept in ["w", "x"] {
        let fused = fuse(&graph, &[kept.to_string()]);
        assert!(fused.find(kept).is_some());
        assert_eq!(count(&fused, |op| matches!(op, Op::LinearAdd { .. })), 0, "{kept}");
    }
    assert_eq!(fuse(&graph, &["sum".to_string()]).nodes.len(), graph.nodes.len() - 1);
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
fn inputs_still_come_before_their_users() {
    for (name, rule) in RULES {
        let mut graph = residual(true, true);
        assert!(rule(&mut graph, &[]) > 0, "{name} never applies");
        for (i, node) in graph.nodes.iter().enumerate() {
            assert!(node.inputs.iter().all(|&NodeId(input)| input < i), "{name}: node {i}");
        }
    }
}
