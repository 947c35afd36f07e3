//! Every preset in its true widths, with one layer, against the reference. Ignored by default: the
//! largest takes gigabytes and a minute. `cargo test --release --test presets -- --ignored`

#[path = "support/rig.rs"]
mod rig;
mod support;

use rig::Rig;
use wgllama::graph::reference::Reference;
use wgllama::model::{Config, architecture, presets};
use wgllama::plan::{PlanOptions, lower};
use wgllama::{Activations, KvFormat, WeightFormat};

#[test]
#[ignore = "takes gigabytes, and minutes on a software adapter"]
fn a_layer_of_each_preset_equals_the_reference() {
    let Some(gpu) = support::gpu() else { return };
    let caps = gpu.caps();
    for name in presets::names() {
        let mut config = Config::preset(name).unwrap();
        config.num_hidden_layers = 1;
        // The tables of all presets are alike, and half of the smaller models.
        config.vocab_size = 1000;
        let graph = (architecture(&config.model_type).unwrap().graph)(&config).unwrap();
        let rig = Rig::new(graph, WeightFormat::Q4_0, 1);
        let ids: Vec<u32> = (0..5).map(|i| i * 131 % 1000).collect();
        let batch = wgllama::graph::Batch::sequence(&ids, 0, 0).with_all_outputs();
        let options = PlanOptions { activations: Activations::F32, ..PlanOptions::new(5, 5, KvFormat::F32) };
        let plan = lower(&rig.graph, &rig.layouts(caps), caps, &options).unwrap();
        let found = rig.run(&gpu, caps, &plan, std::slice::from_ref(&batch), 64);
        let expected = Reference::new(&rig.graph, &rig, KvFormat::F32).unwrap().logits(&batch).unwrap();
        // Logits of order 1, of sums of up to 28672 products.
        support::assert_close(name, &found, &expected, 2e-4);
        println!("{name}: off by at most {:e}", support::max_error(&found, &expected).0);
    }
}
