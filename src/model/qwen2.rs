//! model_type `qwen2` (Qwen2 Technical Report, 2024), also of Qwen 1.5 and 2.5: a LLaMA whose q, k
//! and v have biases.

use crate::error::Result;
use crate::files::JsonFile;
use crate::model::Config;

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28
}"#;

/// What its `config.json` leaves unsaid, and its windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    // Whatever keys of other types a file has.
    (config.attention_bias, config.attention_output_bias, config.mlp_bias) = (true, false, false);
    windows(json, config)
}

/// The windows of Qwen 2 and 3, if they are used: not in the first layers.
pub fn windows(json: &JsonFile, config: &mut Config) -> Result<()> {
    if !json.opt_bool("use_sliding_window")?.unwrap_or(false) {
        return Ok(());
    }
    // None of them, or a number.
    let whole = json.opt_u64("max_window_layers")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(28);
    super::windows(json, config, |layer| layer >= whole)
}
