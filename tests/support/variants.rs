//! Every variant, and what naga makes of it.

use naga::valid::{Capabilities, SubgroupOperationSet, ValidationFlags, Validator};
use wgllama::caps::Caps;
use wgllama::files::JsonFile;
use wgllama::graph::WeightSpec;
use wgllama::kernels::{KERNELS, Variant, link::link};
use wgllama::model::{Config, architecture};
use wgllama::plan::{PlanOptions, WeightLayout, lower};
use wgllama::{KvFormat, WeightFormat};

/// All variants that any preset lists, and those of plans for models of odd and of real sizes.
pub fn all_variants() -> Vec<Variant> {
    let mut seen = std::collections::HashSet::new();
    let mut all = Vec::new();
    for (_, caps) in Caps::presets() {
        all.extend(KERNELS.iter().flat_map(|decl| (decl.variants)(&caps)));
        // hidden, wide, heads, kv_heads, head_dim
        for [hidden, wide, heads, kv_heads, head_dim] in
            [[576, 1536, 9, 3, 64], [4096, 11008, 32, 32, 128], [64, 172, 6, 1, 10], [40, 44, 24, 2, 256]]
        {
            let text = format!(
                r#"{{"model_type": "llama", "hidden_size": {hidden}, "intermediate_size": {wide},
                    "num_hidden_layers": 1, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
                    "head_dim": {head_dim}, "vocab_size": 100, "attention_bias": true}}"#
            );
            let config = Config::from_json(&JsonFile::from_str("config.json", &text).unwrap()).unwrap();
            let graph = (architecture("llama").unwrap().graph)(&config).unwrap();
            let layout =
                |w: &WeightSpec| WeightLayout::new(w, &vec![WeightFormat::F16; w.parts.len()], &caps);
            let layouts: Vec<_> = graph.weights.iter().map(|w| layout(w).unwrap()).collect();
            for (tokens, outputs) in [(1, 1), (7, 7), (512, 1)] {
                let options = PlanOptions::new(tokens, outputs, KvFormat::F32);
                let plan = lower(&graph, &layouts, &caps, &options).unwrap();
                all.extend(plan.launches.iter().map(|l| l.dispatch.variant));
            }
        }
    }
    all.retain(|v| seen.insert(*v));
    all
}

pub fn parse(variant: &Variant) -> naga::Module {
    let linked = link(variant);
    naga::front::wgsl::parse_str(&linked.source).unwrap_or_else(|e| {
        let line = e.location(&linked.source).map_or(0, |l| l.line_number as usize);
        panic!("{variant}: {} {}", linked.locate(line), e.emit_to_string(&linked.source))
    })
}

pub fn validate(variant: &Variant, module: &naga::Module) -> naga::valid::ModuleInfo {
    // Core WGSL; naga asks for it only because some GL drivers lack it.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if variant.needs_subgroup() {
        capabilities |= Capabilities::SUBGROUP;
    }
    if variant.needs_coop() {
        capabilities |= Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
    }
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    if variant.needs_subgroup() {
        validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
        validator.subgroup_operations(SubgroupOperationSet::all());
    }
    validator
        .validate(module)
        .unwrap_or_else(|e| panic!("{variant}: {}", e.emit_to_string(&link(variant).source)))
}
