//! model_type `mistral` (Jiang et al. 2023): a LLaMA whose layers may see only the last positions.
//! GGUF files say `llama`.

use crate::error::Result;
use crate::files::JsonFile;
use crate::model::Config;

/// What its configurations may leave out.
pub const DEFAULTS: &str =
    r#"{"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}"#;

/// Its windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    super::windows(json, config, |_| true)
}
