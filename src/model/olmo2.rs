//! model_type `olmo2` (2 OLMo 2 Furious, 2024): a LLaMA that normalises what each half of a layer
//! adds, instead of what it reads, and all queries and all keys together.

use crate::error::Result;
use crate::files::{Gguf, JsonFile};
use crate::model::{Config, HeadNorms, Norms};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{"rms_norm_eps": 1e-5}"#;

/// The names of its norms in GGUF.
pub const MODULES: [(&str, &str); 1] = [("post_attention_layernorm", "post_attention_norm")];

/// Its norms.
pub fn config(_: &JsonFile, config: &mut Config) -> Result<()> {
    set(config);
    Ok(())
}

/// The same in GGUF.
pub fn gguf(_: &Gguf, config: &mut Config) -> Result<()> {
    set(config);
    Ok(())
}

fn set(config: &mut Config) {
    config.query_norms = Some(HeadNorms::All);
    config.norms = Norms::After;
}
