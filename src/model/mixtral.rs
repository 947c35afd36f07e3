//! model_type `mixtral` (Jiang et al. 2024): a Mistral whose feed-forward parts are experts. GGUF files
//! say `llama`.

use crate::error::Result;
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::model::{Config, Experts, Unwritable};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
    "num_local_experts": 8, "num_experts_per_tok": 2
}"#;

/// The names of its experts in GGUF.
pub const MODULES: [(&str, &str); 4] = [
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("block_sparse_moe.experts.w1", "ffn_gate_exps"),
    ("block_sparse_moe.experts.w3", "ffn_up_exps"),
    ("block_sparse_moe.experts.w2", "ffn_down_exps"),
];

/// The module of its experts, and their matrices.
pub const EXPERTS: [&str; 4] = ["block_sparse_moe", "w1", "w3", "w2"];

/// Its experts and windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    let experts = Experts {
        count: json.usize("num_local_experts")?,
        chosen: json.usize("num_experts_per_tok")?,
        width: config.intermediate_size,
        normalised: true,
        layers: (0..config.num_hidden_layers).collect(),
        modules: EXPERTS,
        joined: false,
    };
    experts.check(|what, message| {
        let key = if what == "experts" { "num_local_experts" } else { "num_experts_per_tok" };
        json.error(key, message)
    })?;
    config.experts = Some(experts);
    super::windows(json, config, |_| true)
}

/// The same in GGUF, of files that say `llama`: without experts they are one.
pub fn gguf(gguf: &Gguf, config: &mut Config) -> Result<()> {
    let experts =
        experts_in_gguf(gguf, "llama", EXPERTS, config.intermediate_size, config.num_hidden_layers)?;
    if experts.is_some() {
        config.model_type = "mixtral".to_string();
        config.experts = experts;
    }
    Ok(())
}

/// The experts of all layers that GGUF metadata tell of, if there are any.
pub fn experts_in_gguf(
    gguf: &Gguf,
    arch: &str,
    modules: [&'static str; 4],
    usual: usize,
    layers: usize,
) -> Result<Option<Experts>> {
    let key = |name: &str| format!("{arch}.{name}");
    let size = |name: &str| -> Result<Option<usize>> {
        Ok(gguf.opt_u64(&key(name))?.map(|v| usize::try_from(v).unwrap_or(usize::MAX)))
    };
    let Some(count) = size("expert_count")?.filter(|n| *n > 0) else { return Ok(None) };
    let experts = Experts {
        count,
        chosen: size("expert_used_count")?.unwrap_or(0),
        width: size("expert_feed_forward_length")?.unwrap_or(usual),
        normalised: true,
        layers: (0..layers).collect(),
        modules,
        joined: true,
    };
    experts.check(|what, message| {
        let name = match what {
            "experts" => "expert_count",
            "chosen" => "expert_used_count",
            _ => "expert_feed_forward_length",
        };
        gguf.error(&key(name), message)
    })?;
    Ok(Some(experts))
}

/// Writes what [`gguf`] reads.
pub fn to_gguf(config: &Config, writer: &mut GgufWriter) -> Result<(), Unwritable> {
    experts_to_gguf(config, "llama", writer)
}

/// Writes what [`experts_in_gguf`] reads.
pub fn experts_to_gguf(config: &Config, arch: &str, writer: &mut GgufWriter) -> Result<(), Unwritable> {
    if let Some(experts) = &config.experts {
        if experts.layers.len() != config.num_hidden_layers {
            return Err(Unwritable { key: "mlp_only_layers", what: "layers without experts" });
        }
        if !experts.normalised {
            return Err(Unwritable { key: "norm_topk_prob", what: "weights that are not normalised" });
        }
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        writer.u32(&format!("{arch}.expert_count"), number(experts.count));
        writer.u32(&format!("{arch}.expert_used_count"), number(experts.chosen));
        writer.u32(&format!("{arch}.expert_feed_forward_length"), number(experts.width));
    }
    super::plain_gguf(config, writer)
}
