//! model_type `gemma2` (Gemma 2, 2024): a Gemma that normalises what the parts of a layer read and
//! what they add, caps scores and logits, and has windows in every other layer.

use crate::error::Result;
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::model::{Config, Norms, Unwritable, gemma};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 8192,
    "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0
}"#;

/// The names of its norms in GGUF.
pub const MODULES: [(&str, &str); 2] =
    [("post_attention_layernorm", "post_attention_norm"), ("pre_feedforward_layernorm", "ffn_norm")];

/// Its norms, caps, scores and windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    common(json, config)?;
    super::windows(json, config, slides)
}

/// What Gemma 3 has of it, in folders.
pub fn common(json: &JsonFile, config: &mut Config) -> Result<()> {
    gemma::config(json, config)?;
    config.norms = Norms::Both;
    let number = |key: &str| super::positive(json, key);
    config.attention_scale = number("query_pre_attn_scalar")?.map(|scalar| scalar.powf(-0.5) as f32);
    config.attention_cap = number("attn_logit_softcapping")?.map(|cap| cap as f32);
    config.logits_cap = number("final_logit_softcapping")?.map(|cap| cap as f32);
    Ok(())
}

/// The same in GGUF.
pub fn gguf(gguf: &Gguf, config: &mut Config) -> Result<()> {
    common_in_gguf(gguf, "gemma2", config)?;
    config.attention_cap = config.attention_cap.or(Some(50.0));
    config.logits_cap = config.logits_cap.or(Some(30.0));
    config.attention_scale = usual_scale(config, 46);
    windows_in_gguf(gguf, "gemma2", config, 4096, slides)
}

/// What Gemma 3 has of it, in GGUF.
pub fn common_in_gguf(gguf: &Gguf, arch: &str, config: &mut Config) -> Result<()> {
    gemma::gguf(gguf, config)?;
    config.norms = Norms::Both;
    let number = |name: &str| super::positive_in_gguf(gguf, &format!("{arch}.{name}"));
    config.attention_cap = number("attn_logit_softcapping")?.map(|cap| cap as f32);
    config.logits_cap = number("final_logit_softcapping")?.map(|cap| cap as f32);
    Ok(())
}

/// Windows, of `usual` positions if GGUF metadata do not say.
pub fn windows_in_gguf(
    gguf: &Gguf,
    arch: &str,
    config: &mut Config,
    usual: usize,
    slides: fn(usize) -> bool,
) -> Result<()> {
    let key = format!("{arch}.attention.sliding_window");
    let window = gguf.opt_u64(&key)?.map_or(usual, |w| usize::try_from(w).unwrap_or(usize::MAX));
    if window > 0 {
        config.window = Some(window);
        config.sliding_layers = (0..config.num_hidden_layers).filter(|layer| slides(*layer)).collect();
    }
    Ok(())
}

/// GGUF has no key for the factor of the scores: it goes by the head's width, and in the largest
/// model, which has `largest` layers, by a head's share of the stream.
pub fn usual_scale(config: &Config, largest: usize) -> Option<f32> {
    let large = config.num_hidden_layers == largest;
    let width = if large { config.hidden_size / config.num_attention_heads } else { config.head_dim };
    Some((width as f64).powf(-0.5) as f32)
}

/// Writes what [`gguf`] reads.
pub fn to_gguf(config: &Config, writer: &mut GgufWriter) -> Result<(), Unwritable> {
    let (Some(scores), Some(logits)) = (config.attention_cap, config.logits_cap) else {
        return Err(Unwritable { key: "attn_logit_softcapping", what: "no cap" });
    };
    writer.f32("gemma2.attn_logit_softcapping", scores);
    writer.f32("gemma2.final_logit_softcapping", logits);
    common_to_gguf(config, "gemma2", writer, 46, slides)
}

/// What Gemma 3 has of it.
pub fn common_to_gguf(
    config: &Config,
    arch: &str,
    writer: &mut GgufWriter,
    largest: usize,
    slides: fn(usize) -> bool,
) -> Result<(), Unwritable> {
    if config.attention_scale != usual_scale(config, largest) {
        return Err(Unwritable { key: "query_pre_attn_scalar", what: "this factor of the scores" });
    }
    let usual: Vec<usize> = (0..config.num_hidden_layers).filter(|layer| slides(*layer)).collect();
    match config.window {
        Some(window) if config.sliding_layers == usual => {
            let key = format!("{arch}.attention.sliding_window");
            writer.u32(&key, u32::try_from(window).unwrap_or(u32::MAX));
            Ok(())
        }
        None if usual.is_empty() => Ok(()),
        _ => Err(Unwritable { key: "layer_types", what: "these layers with windows" }),
    }
}

fn slides(layer: usize) -> bool {
    layer.is_multiple_of(2)
}
