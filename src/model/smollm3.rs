//! model_type `smollm3` (SmolLM3, 2025): a LLaMA of which every fourth layer turns nothing.

use crate::error::Result;
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::model::{Config, Unwritable};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2000000.0, "tie_word_embeddings": true
}"#;

/// Layers from one without rotation to the next, where a file does not say.
const INTERVAL: usize = 4;

/// Which layers turn, and their windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    let interval = json.opt_usize("no_rope_layer_interval")?.unwrap_or(INTERVAL);
    let listed = json.opt_f64s("no_rope_layers")?;
    let layers = config.num_hidden_layers;
    if let Some(listed) = listed.as_ref().filter(|l| l.len() != layers) {
        let message = format!("expected {layers} numbers, found {}", listed.len());
        return Err(json.error("no_rope_layers", message));
    }
    config.unrotated_layers = match listed {
        Some(listed) => (0..layers).filter(|l| listed[*l] == 0.0).collect(),
        None => every(interval, layers),
    };
    if json.opt_bool("use_sliding_window")?.unwrap_or(false) {
        let unrotated = config.unrotated_layers.clone();
        super::windows(json, config, |layer| unrotated.contains(&layer))?;
    }
    Ok(())
}

/// GGUF has no key for it.
pub fn gguf(_: &Gguf, config: &mut Config) -> Result<()> {
    config.unrotated_layers = usual(config);
    Ok(())
}

/// Nothing, if the layers without rotation are those that a GGUF file has.
pub fn to_gguf(config: &Config, writer: &mut GgufWriter) -> Result<(), Unwritable> {
    if config.unrotated_layers != usual(config) {
        return Err(Unwritable { key: "no_rope_layers", what: "these layers without rotation" });
    }
    super::plain_gguf(&Config { unrotated_layers: Vec::new(), ..config.clone() }, writer)
}

/// The layers without rotation that a GGUF file has.
fn usual(config: &Config) -> Vec<usize> {
    every(INTERVAL, config.num_hidden_layers)
}

fn every(interval: usize, layers: usize) -> Vec<usize> {
    (0..layers).filter(|l| interval > 0 && (l + 1).is_multiple_of(interval)).collect()
}
