//! model_type `granite` (Granite 3, IBM, 2024): a LLaMA with factors for the embedding, the scores,
//! what layers add to the residual stream, and the logits.

use crate::error::Result;
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::model::{Config, Unwritable};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{"attention_multiplier": 1.0}"#;

/// The factors.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    let number = |key: &str| super::positive(json, key);
    set(
        config,
        [
            number("embedding_multiplier")?,
            number("attention_multiplier")?,
            number("residual_multiplier")?,
            number("logits_scaling")?,
        ],
    );
    Ok(())
}

/// The same in GGUF.
pub fn gguf(gguf: &Gguf, config: &mut Config) -> Result<()> {
    let number = |name: &str| super::positive_in_gguf(gguf, &format!("granite.{name}"));
    set(
        config,
        [
            number("embedding_scale")?,
            number("attention.scale")?,
            number("residual_scale")?,
            number("logit_scale")?,
        ],
    );
    Ok(())
}

/// Writes them.
pub fn to_gguf(config: &Config, writer: &mut GgufWriter) -> Result<(), Unwritable> {
    writer.f32("granite.embedding_scale", config.embedding_scale);
    writer.f32("granite.residual_scale", config.residual_scale);
    writer.f32("granite.logit_scale", 1.0 / config.logits_scale);
    config.attention_scale.inspect(|scale| writer.f32("granite.attention.scale", *scale));
    super::plain_gguf(config, writer)
}

fn set(config: &mut Config, [embedding, scores, residual, logits]: [Option<f64>; 4]) {
    config.embedding_scale = embedding.unwrap_or(1.0) as f32;
    config.attention_scale = scores.map(|s| s as f32);
    config.residual_scale = residual.unwrap_or(1.0) as f32;
    config.logits_scale = (1.0 / logits.unwrap_or(1.0)) as f32;
}
