//! model_type `starcoder2` (StarCoder 2 and The Stack v2, 2024): rows are normalised about their means,
//! every matrix has a bias, and the feed-forward part has no gate.

use crate::error::Result;
use crate::files::{Gguf, JsonFile};
use crate::host::TensorSource;
use crate::model::{Config, NormKind};
use crate::nonlinearity::Nonlinearity;

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5,
    "use_bias": true, "tie_word_embeddings": true
}"#;

/// The names of its feed-forward part in GGUF.
pub const MODULES: [(&str, &str); 2] = [("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down")];

/// Its norms, biases and windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    set(config);
    config.norm_eps = super::epsilon(json, "norm_epsilon")?;
    let biases = json.opt_bool("use_bias")?.unwrap_or(true);
    (config.attention_bias, config.attention_output_bias, config.mlp_bias) = (biases, biases, biases);
    super::windows(json, config, |_| true)
}

/// The same in GGUF, which has no windows.
pub fn gguf(gguf: &Gguf, config: &mut Config) -> Result<()> {
    set(config);
    config.hidden_act = Nonlinearity::GeluTanh;
    config.norm_eps = super::epsilon_in_gguf(gguf, "starcoder2.attention.layer_norm_epsilon")?;
    config.mlp_bias = gguf.tensor("blk.0.ffn_up.bias").is_some();
    Ok(())
}

fn set(config: &mut Config) {
    config.norm_kind = NormKind::Layer;
    config.gated = false;
}
