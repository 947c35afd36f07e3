//! model_type `phi3` (Phi-3 Technical Report, 2024), also of Phi 3.5 and Phi 4: a LLaMA whose files
//! hold q, k and v in one tensor, and gate and up in another.

use crate::error::Result;
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::model::{Config, Unwritable};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5
}"#;

/// Its tensors and windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    config.joined_tensors = true;
    super::windows(json, config, |_| true)
}

/// The same in GGUF.
pub fn gguf(gguf: &Gguf, config: &mut Config) -> Result<()> {
    config.joined_tensors = true;
    let window = gguf.opt_u64("phi3.attention.sliding_window")?.and_then(|w| usize::try_from(w).ok());
    if let Some(window) = window.filter(|w| *w > 0) {
        config.window = Some(window);
        config.sliding_layers = (0..config.num_hidden_layers).collect();
    }
    Ok(())
}

/// Writes them.
pub fn to_gguf(config: &Config, writer: &mut GgufWriter) -> Result<(), Unwritable> {
    if let Some(window) = config.used_window() {
        writer.u32("phi3.attention.sliding_window", u32::try_from(window).unwrap_or(u32::MAX));
    }
    Ok(())
}
