//! model_type `stablelm` (Stable LM 2, 2024, and StableLM 3B and Zephyr): rows are normalised about
//! their means, a quarter of a head turns, and in the larger ones attention and feed-forward part read
//! the same.

use crate::error::Result;
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::host::TensorSource;
use crate::model::{Config, HeadNorms, NormKind, Unwritable};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "num_key_value_heads": 32, "max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25
}"#;

/// Its norms and biases.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    config.norm_kind = NormKind::Layer;
    config.norm_eps = super::epsilon(json, "layer_norm_eps")?;
    config.attention_bias = json.opt_bool("use_qkv_bias")?.unwrap_or(false);
    (config.attention_output_bias, config.mlp_bias) = (false, false);
    config.parallel = json.opt_bool("use_parallel_residual")?.unwrap_or(false);
    config.query_norms = json.opt_bool("qk_layernorm")?.unwrap_or(false).then_some(HeadNorms::Each);
    Ok(())
}

/// The same in GGUF, where the factors of all heads are one tensor.
pub fn gguf(gguf: &Gguf, config: &mut Config) -> Result<()> {
    config.norm_kind = NormKind::Layer;
    config.norm_eps = super::epsilon_in_gguf(gguf, "stablelm.attention.layer_norm_epsilon")?;
    // What other engines go by; the key says the same.
    config.parallel = gguf.tensor("blk.0.ffn_norm.weight").is_none();
    config.query_norms = gguf.tensor("blk.0.attn_q_norm.weight").is_some().then_some(HeadNorms::Joined);
    Ok(())
}

/// Writes what [`gguf`] reads.
pub fn to_gguf(config: &Config, writer: &mut GgufWriter) -> Result<(), Unwritable> {
    if config.query_norms.is_some() {
        return Err(Unwritable { key: "qk_layernorm", what: "a tensor for the norm of each head" });
    }
    writer.bool("stablelm.use_parallel_residual", config.parallel);
    super::plain_gguf(config, writer)
}
