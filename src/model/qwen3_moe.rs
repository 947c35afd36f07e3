//! model_type `qwen3_moe` (Qwen3 Technical Report, 2025), with experts in all or some layers.

use crate::error::Result;
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::model::{Config, Experts, Unwritable, mixtral, qwen3};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "num_key_value_heads": 4, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": false, "decoder_sparse_step": 1
}"#;

/// The names of its experts in GGUF.
pub const MODULES: [(&str, &str); 4] = [
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
];

const ARCH: &str = "qwen3moe";
/// The module of its experts, and their matrices.
pub const EXPERTS: [&str; 4] = ["mlp", "gate_proj", "up_proj", "down_proj"];

/// Its norms, windows and experts.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    qwen3::config(json, config)?;
    let count = match json.opt_usize("num_experts")? {
        Some(count) => count,
        None => json.opt_usize("num_local_experts")?.unwrap_or(128),
    };
    let step = json.usize("decoder_sparse_step")?;
    let dense = json.opt_f64s("mlp_only_layers")?.unwrap_or_default();
    let layers = config.num_hidden_layers;
    if dense.len() > layers {
        return Err(
            json.error("mlp_only_layers", format!("expected at most {layers}, found {}", dense.len()))
        );
    }
    let sparse = |layer: &usize| (layer + 1).is_multiple_of(step) && !dense.contains(&(*layer as f64));
    let experts = Experts {
        count,
        chosen: json.usize("num_experts_per_tok")?,
        width: json.usize("moe_intermediate_size")?,
        normalised: json.opt_bool("norm_topk_prob")?.unwrap_or(false),
        layers: (0..config.num_hidden_layers).filter(sparse).collect(),
        modules: EXPERTS,
        joined: false,
    };
    experts.check(|what, message| {
        let key = match what {
            "experts" => "num_experts",
            "chosen" => "num_experts_per_tok",
            _ => "moe_intermediate_size",
        };
        json.error(key, message)
    })?;
    config.experts = Some(experts);
    Ok(())
}

/// The same in GGUF, where all layers have experts.
pub fn gguf(gguf: &Gguf, config: &mut Config) -> Result<()> {
    qwen3::gguf(gguf, config)?;
    let (usual, layers) = (config.intermediate_size, config.num_hidden_layers);
    config.experts = mixtral::experts_in_gguf(gguf, ARCH, EXPERTS, usual, layers)?;
    Ok(())
}

/// Writes what [`gguf`] reads.
pub fn to_gguf(config: &Config, writer: &mut GgufWriter) -> Result<(), Unwritable> {
    mixtral::experts_to_gguf(config, ARCH, writer)
}
