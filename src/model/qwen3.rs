//! model_type `qwen3` (Qwen3 Technical Report, 2025), without experts: a LLaMA whose queries and keys
//! are normalised head by head.

use crate::error::Result;
use crate::files::{Gguf, JsonFile};
use crate::graph::Spans;
use crate::model::Config;

/// Its norms and windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    config.query_norms = Some(Spans::Heads);
    if json.opt_bool("use_sliding_window")?.unwrap_or(false) {
        let whole = json.opt_usize("max_window_layers")?.unwrap_or(28);
        super::windows(json, config, |layer| layer >= whole)?;
    }
    Ok(())
}

/// The same in GGUF, which has no windows.
pub fn gguf(_: &Gguf, config: &mut Config) -> Result<()> {
    config.query_norms = Some(Spans::Heads);
    Ok(())
}
