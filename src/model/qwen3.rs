//! model_type `qwen3` (Qwen3 Technical Report, 2025), without experts: a LLaMA whose queries and keys
//! are normalised head by head.

use crate::error::Result;
use crate::files::{Gguf, JsonFile};
use crate::model::{Config, HeadNorms, qwen2};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768, "sliding_window": 4096,
    "max_window_layers": 28
}"#;

/// Its norms and windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    config.query_norms = Some(HeadNorms::Shared);
    qwen2::windows(json, config)
}

/// The same in GGUF, which has no windows.
pub fn gguf(_: &Gguf, config: &mut Config) -> Result<()> {
    config.query_norms = Some(HeadNorms::Shared);
    Ok(())
}
