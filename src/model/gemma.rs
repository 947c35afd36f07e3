//! model_type `gemma` (Gemma, 2024): a LLaMA with GELU for silu, whose files hold the factors of
//! norms less one, and whose embedding is taken times the root of its width.

use crate::error::Result;
use crate::files::{Gguf, JsonFile};
use crate::model::Config;
use crate::nonlinearity::Nonlinearity;

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "head_dim": 256, "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true
}"#;

/// What all Gemmas have in their folders.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    if json.opt_bool("use_bidirectional_attention")?.unwrap_or(false) {
        let message = "expected false, found true: an encoder, which writes no text";
        return Err(json.error("use_bidirectional_attention", message));
    }
    set(config);
    config.norm_shift = 1.0;
    // The first configurations say gelu and mean this.
    if config.hidden_act == Nonlinearity::Gelu {
        config.hidden_act = Nonlinearity::GeluTanh;
    }
    Ok(())
}

/// The same in GGUF, where the factors are whole.
pub fn gguf(_: &Gguf, config: &mut Config) -> Result<()> {
    set(config);
    config.hidden_act = Nonlinearity::GeluTanh;
    Ok(())
}

fn set(config: &mut Config) {
    config.embedding_scale = (config.hidden_size as f32).sqrt();
}
