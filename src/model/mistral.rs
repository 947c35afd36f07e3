//! model_type `mistral` (Jiang et al. 2023): a LLaMA whose layers may see only the last positions.
//! GGUF files say `llama`.

use crate::error::Result;
use crate::files::JsonFile;
use crate::model::Config;

/// Its windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    super::windows(json, config, |_| true)
}
