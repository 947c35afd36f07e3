//! The full comparison of every kernel with the CPU on an adapter: small models of random weights, which
//! together have all operations, formats and sizes of a step, run with each launch compared.

use crate::audit::Findings;
use crate::dtype::{Activations, KvFormat, WeightFormat};
use crate::error::{Error, Result};
use crate::files::JsonFile;
use crate::generate::{Sampling, SessionOptions};
use crate::gpu::Context;
use crate::graph::{Graph, Part, Rope, RowOrder, VectorSpec, WeightSpec};
use crate::kernels::KERNELS;
use crate::model::{Config, Model};
use crate::shape::Rows;

/// A model to be examined.
struct Case {
    model_type: &'static str,
    /// Keys beside those that all have.
    keys: &'static str,
    hidden: usize,
    format: WeightFormat,
    kv: KvFormat,
    activations: Activations,
}

/// What one model showed.
#[derive(Debug)]
pub struct Examined {
    /// Which: family, formats, activations.
    pub what: String,
    /// The first launch that differed, or what else went wrong.
    pub outcome: Result<Findings>,
}

/// What all of them showed.
#[derive(Debug, Default)]
pub struct Diagnosis {
    /// Each model.
    pub examined: Vec<Examined>,
    /// What was right, by kernel.
    pub findings: Findings,
}

impl Diagnosis {
    /// Those that went wrong.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &Error)> {
        self.examined.iter().filter_map(|e| Some((e.what.as_str(), e.outcome.as_ref().err()?)))
    }

    /// Kernels of which no result was compared; the last two only measure.
    pub fn untouched(&self) -> Vec<&'static str> {
        let all = KERNELS.iter().map(|kernel| kernel.name).filter(|name| !name.starts_with("probe_"));
        all.filter(|name| !self.findings.0.contains_key(name)).collect()
    }
}

/// Families that differ in the operations of a step.
const FAMILIES: [(&str, &str); 8] = [
    ("llama", r#""attention_bias": true"#),
    (
        "gemma2",
        r#""sliding_window": 16, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0"#,
    ),
    ("granite", r#""residual_multiplier": 0.22, "embedding_multiplier": 12.0, "attention_multiplier": 0.1"#),
    ("mixtral", r#""num_local_experts": 4, "num_experts_per_tok": 2"#),
    ("olmo2", ""),
    ("qwen3", ""),
    ("stablelm", r#""use_qkv_bias": true"#),
    ("starcoder2", r#""use_bias": true, "sliding_window": 16"#),
];

fn cases() -> Vec<Case> {
    let case = |(model_type, keys)| Case {
        model_type,
        keys,
        hidden: 96,
        format: WeightFormat::F32,
        kv: KvFormat::F32,
        activations: Activations::F32,
    };
    let llama = || case(FAMILIES[0]);
    let mut all: Vec<Case> = FAMILIES.into_iter().map(case).collect();
    // Superblocks have 256 weights.
    all.extend(WeightFormat::ALL.map(|format| Case { hidden: 256, format, ..llama() }));
    all.extend(KvFormat::ALL.map(|kv| Case { kv, ..llama() }));
    for activations in [Activations::F16, Activations::Int8] {
        for format in [WeightFormat::F16, WeightFormat::Q8_0, WeightFormat::Q4_0, WeightFormat::Q4_K] {
            all.push(Case { hidden: 256, format, activations, ..llama() });
        }
    }
    // Columns that several workgroups share.
    all.push(Case { hidden: 2048, format: WeightFormat::Q8_0, ..llama() });
    all
}

impl Case {
    fn config(&self) -> Result<Config> {
        let Self { model_type, keys, hidden, .. } = self;
        let wide = hidden * 5 / 2 / 32 * 32;
        let comma = if keys.is_empty() { "" } else { ", " };
        let text = format!(
            r#"{{"model_type": "{model_type}", "hidden_size": {hidden}, "intermediate_size": {wide},
                "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24,
                "vocab_size": 300, "max_position_embeddings": 256{comma}{keys}}}"#
        );
        Config::from_json(&JsonFile::from_str("config.json", &text)?)
    }

    fn what(&self) -> String {
        let Self { model_type, format, kv, activations, .. } = self;
        format!("{model_type} {format}, cache {kv}, activations {}", activations.name())
    }

    fn examine(&self, context: &Context) -> Result<Findings> {
        self.run(&Model::synthetic(context, &self.config()?, self.format)?)
    }

    /// A prompt in steps of several sizes, a few tokens, and sequences that step together.
    fn run(&self, model: &Model) -> Result<Findings> {
        // Beyond a window, and beyond the pages that its layer has for it.
        let windows = (0..model.graph().caches.len()).any(|layer| model.graph().window(layer).is_some());
        let length = if windows { 330 } else { 90 };
        let ids: Vec<u32> = (0..length).map(|i| (i * 31 + 5) % 300).collect();
        let mut findings = Findings::default();
        for chunk in [90, 7] {
            let options = SessionOptions {
                context: Some(512),
                kv: self.kv,
                activations: self.activations,
                chunk: Some(chunk),
                check: true,
                ..SessionOptions::default()
            };
            let ids = if chunk == 90 { &ids[..] } else { &ids[..chunk] };
            let mut session = model.session(&options)?;
            let sampling = Sampling::default().temperature(0.8).max_tokens(3);
            session.generate_ids(ids, &sampling)?.try_for_each(|piece| piece.map(|_| ()))?;
            findings.add(session.findings().clone());
            if chunk == 7 {
                let mut group = model.group(&options, 3)?;
                (0..3).try_for_each(|sequence| group.prefill(sequence, &ids[sequence..]))?;
                group.feed_each(&[1, 2, 3])?;
                findings.add(group.findings().clone());
            }
        }
        Ok(findings)
    }
}

/// Compares every kernel, in the variants that such models get on the adapter, with the CPU, each up to its first
/// failure; `hear` is told which model is
/// next, its place, and how many there are. The context should skip the self-check, which would hide what is wrong.
pub fn examine(context: &Context, hear: &dyn Fn(&str, usize, usize)) -> Diagnosis {
    let cases = cases();
    let mut diagnosis = Diagnosis::default();
    for (i, case) in cases.iter().enumerate() {
        hear(&case.what(), i, cases.len() + 1);
        diagnosis.add(case.what(), case.examine(context));
    }
    hear("permuted columns", cases.len(), cases.len() + 1);
    diagnosis.add("permuted columns".to_string(), permuted(context));
    diagnosis
}

impl Diagnosis {
    fn add(&mut self, what: String, outcome: Result<Findings>) {
        if let Ok(findings) = &outcome {
            self.findings.add(findings.clone());
        }
        self.examined.push(Examined { what, outcome });
    }
}

/// A model whose columns are permuted, as those of some GPTQ checkpoints are.
fn permuted(context: &Context) -> Result<Findings> {
    let case = Case { hidden: 96, ..cases().swap_remove(0) };
    let mut graph = Graph::new(Rope::plain(1e4, 24));
    let part =
        |tensor: &str, rows| Part { tensor: tensor.to_string(), rows, order: RowOrder::Stored, within: None };
    let table = graph.weight(WeightSpec {
        name: "embed".to_string(),
        rows: 300,
        cols: case.hidden,
        parts: vec![part("embed", 300)],
        interleaved: false,
        matrices: 1,
    })?;
    let vector = |name: &str| VectorSpec {
        name: name.to_string(),
        parts: vec![part(name, case.hidden)],
        interleaved: false,
        shift: 0.0,
        scale: 1.0,
    };
    let [order, gain] = ["order", "gain"].map(|name| graph.vector(vector(name)));
    let x = graph.embed("x", table);
    let x = graph.permute("permuted", x, order)?;
    let x = graph.rms_norm("norm", x, gain, 1e-5, Rows::Outputs)?;
    graph.linear("logits", x, table, None)?;
    let model = Model::of_graph(context, case.config()?, graph, case.format)?;
    let places: Vec<f32> = (0..case.hidden).map(|i| ((i * 37 + 11) % case.hidden) as f32).collect();
    context.write(&model.weights().vectors[order.0], 0, bytemuck::cast_slice(&places));
    case.run(&model)
}
