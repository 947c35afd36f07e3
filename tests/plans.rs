//! Plans as text, without an adapter: what runs for models of real widths on adapters of every
//! class. A change that matters to speed shows here as a diff (`cargo insta review`, or set
//! INSTA_UPDATE=always).

use wgllama::caps::AdapterKind;
use wgllama::files::JsonFile;
use wgllama::graph::{Batch, Graph};
use wgllama::model::{Config, architecture};
use wgllama::plan::{Plan, PlanOptions, WeightLayout, lower};
use wgllama::{Caps, KvFormat, WeightFormat};

/// Whatever grows with the context is the cache.
#[test]
fn scratch_does_not_grow_with_the_context() {
    let graph = graph(2048, 5632, 32, 4, 32000, false);
    for (name, caps) in Caps::presets() {
        for tokens in [1, 8, 512] {
            let slots = |context| {
                let options = PlanOptions { context, ..PlanOptions::new(tokens, 1, KvFormat::F16) };
                plan(&graph, WeightFormat::Q8_0, &caps, &options).slots
            };
            // Attention is split among more workgroups up to a number that the adapter sets.
            assert_eq!(slots(1 << 15), slots(1 << 20), "{name}, {tokens} tokens");
        }
    }
}

/// A model's true widths in two layers.
fn graph(hidden: usize, wide: usize, heads: usize, kv_heads: usize, vocab: usize, tied: bool) -> Graph {
    let text = format!(
        r#"{{"model_type": "llama", "hidden_size": {hidden}, "intermediate_size": {wide},
            "num_hidden_layers": 2, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
            "vocab_size": {vocab}, "tie_word_embeddings": {tied}}}"#
    );
    let config = Config::from_json(&JsonFile::from_str("config.json", &text).unwrap()).unwrap();
    (architecture("llama").unwrap().graph)(&config).unwrap()
}

fn plan(graph: &Graph, format: WeightFormat, caps: &Caps, options: &PlanOptions) -> Plan {
    let layouts: Vec<_> = graph
        .weights
        .iter()
        .map(|w| WeightLayout::new(w, &vec![format; w.parts.len()], caps).unwrap())
        .collect();
    lower(graph, &layouts, caps, options).unwrap()
}

/// Decode and prefill of one model on one adapter.
fn text(graph: &Graph, format: WeightFormat, caps: &Caps) -> String {
    let choosing = PlanOptions { choose: true, ..PlanOptions::new(1, 1, KvFormat::F16) };
    let decode = plan(graph, format, caps, &choosing);
    let prefill = plan(graph, format, caps, &PlanOptions::new(512, 1, KvFormat::F16));
    format!("{decode}\n{prefill}")
}

#[test]
fn plans_of_smollm2_135m() {
    let graph = graph(576, 1536, 9, 3, 49152, true);
    for (name, caps) in Caps::presets() {
        insta::assert_snapshot!(format!("smollm2_135m_{name}"), text(&graph, WeightFormat::Q4_1, &caps));
    }
}

#[test]
fn plans_of_tinyllama_1b() {
    let graph = graph(2048, 5632, 32, 4, 32000, false);
    for (name, caps) in Caps::presets() {
        insta::assert_snapshot!(format!("tinyllama_1b_{name}"), text(&graph, WeightFormat::Q8_0, &caps));
    }
}

#[test]
fn plans_of_llama_3_8b() {
    let graph = graph(4096, 14336, 32, 8, 128_256, false);
    for (name, caps) in Caps::presets() {
        insta::assert_snapshot!(format!("llama_3_8b_{name}"), text(&graph, WeightFormat::F16, &caps));
    }
}

/// One layer of Qwen3 30B A3B: experts, and heads that are normalised.
fn experts() -> Graph {
    let mut config = Config::preset("qwen3-30b-a3b").unwrap();
    config.num_hidden_layers = 1;
    (architecture("qwen3_moe").unwrap().graph)(&config).unwrap()
}

#[test]
fn plans_of_qwen3_30b_a3b() {
    for (name, caps) in Caps::presets() {
        insta::assert_snapshot!(format!("qwen3_30b_a3b_{name}"), text(&experts(), WeightFormat::Q4_0, &caps));
    }
}

#[test]
fn graphs_have_a_text() {
    insta::assert_snapshot!("graph_smollm2_135m", graph(576, 1536, 9, 3, 49152, true).to_string());
}

#[test]
fn a_layer_of_decode_is_seven_launches_on_gpus_and_six_on_cpus() {
    for (_, caps) in Caps::presets() {
        let plan = plan(
            &graph(576, 1536, 9, 3, 49152, true),
            WeightFormat::Q4_1,
            &caps,
            &PlanOptions::new(1, 1, KvFormat::F16),
        );
        let layer = plan.launches.iter().filter(|l| l.name.starts_with("layers.1.")).count();
        assert_eq!(layer, if caps.kind == AdapterKind::Cpu { 6 } else { 7 });
    }
}

#[test]
fn making_a_plan_twice_gives_the_same_plan() {
    let graph = graph(576, 1536, 9, 3, 49152, true);
    let options = PlanOptions::new(7, 2, KvFormat::F32);
    let make = || plan(&graph, WeightFormat::Q4_0, &Caps::apple(), &options);
    assert_eq!(make(), make());
}

#[test]
fn every_binding_keeps_the_adapters_limits() {
    let graph = graph(4096, 14336, 32, 8, 128_256, false);
    for (_, caps) in Caps::presets() {
        for w in &graph.weights {
            let layout = WeightLayout::new(w, &vec![WeightFormat::F32; w.parts.len()], &caps).unwrap();
            for shard in &layout.shards {
                assert!(shard.planes.quant_bytes as u64 <= caps.max_storage_binding);
                assert!(shard.planes.bytes() as u64 <= caps.max_buffer);
            }
        }
    }
}

#[test]
fn activations_that_exceed_a_binding_are_refused_with_what_would_fit() {
    let graph = graph(4096, 14336, 32, 8, 128_256, false);
    let caps = Caps::baseline();
    let layouts: Vec<_> = graph
        .weights
        .iter()
        .map(|w| WeightLayout::new(w, &vec![WeightFormat::F16; w.parts.len()], &caps).unwrap())
        .collect();
    let error = lower(&graph, &layouts, &caps, &PlanOptions::new(512, 512, KvFormat::F16)).unwrap_err();
    assert!(matches!(error, wgllama::Error::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains("at most 261 tokens"), "{error}");
}

/// A row for each token and each expert that it chose is more than the tokens are.
#[test]
fn grids_that_exceed_the_adapter_are_refused() {
    let graph = experts();
    let caps = Caps { kind: AdapterKind::Cpu, ..Caps::baseline() };
    let layout = |w: &wgllama::graph::WeightSpec| {
        WeightLayout::new(w, &vec![WeightFormat::Q4_0; w.parts.len()], &caps).unwrap()
    };
    let layouts: Vec<_> = graph.weights.iter().map(layout).collect();
    let plan = |tokens| lower(&graph, &layouts, &caps, &PlanOptions::new(tokens, 1, KvFormat::F16));
    let error = plan(10_000).unwrap_err();
    assert!(matches!(error, wgllama::Error::InvalidOption { .. }), "{error}");
    assert!(error.to_string().contains("chunk") && error.to_string().contains("65535"), "{error}");
    assert!(plan(100).is_ok());
}

/// However a graph is cut into launches, the work of a step is that of the model: weights and
/// cache each once, and 2 rows columns operations for a product.
#[test]
fn the_work_of_a_step_is_that_of_the_model() {
    let graph = graph(4096, 14336, 32, 8, 128_256, false);
    let batches = [Batch::sequence(&[0], 999, 0), Batch::sequence(&vec![0; 100], 900, 0)];
    // Two layers of 8 KV heads of 128 values in f16, keys and values.
    let cache = (1000 * 2 * 8 * 128 * 2 * 2) as f64;
    let table = graph.weights[0].rows * graph.weights[0].cols;
    let values: usize = graph.weights.iter().map(|w| w.rows * w.cols).sum::<usize>() - table;
    let head = graph.weights.last().map_or(0, |w| w.rows * w.cols);
    for batch in batches {
        let tokens = batch.tokens.len();
        let seen: usize = batch.tokens.iter().map(|t| t.position as usize + 1).sum();
        let products = 2 * (tokens * (values - head) + head);
        let flops = (products + seen * 2 * 4 * 4096) as f64;
        for (name, caps) in Caps::presets() {
            let plan = plan(&graph, WeightFormat::F16, &caps, &PlanOptions::new(tokens, 1, KvFormat::F16));
            let work = plan.traffic(&batch);
            // A plane without scales still takes a few bytes.
            assert!((work.weights / (values as f64 * 2.0) - 1.0).abs() < 1e-6, "{name}: {work:?}");
            assert_eq!(work.cache, cache, "{name}");
            // Norms, rotations and activations make up the rest.
            let rest = work.flops / flops - 1.0;
            assert!((0.0..0.001).contains(&rest), "{name}: {rest}");
        }
    }
}

#[test]
fn a_batch_counts_the_positions_of_each_sequence_once() {
    let mut batch = Batch::sequence(&[0; 3], 7, 0);
    batch.tokens.extend(Batch::sequence(&[0; 2], 0, 1).tokens);
    assert_eq!(batch.positions(), 10 + 2);
    assert_eq!(Batch::default().positions(), 0);
}
