//! model_type `gemma3_text` (Gemma 3, 2025): a Gemma 2 that normalises the heads of queries and keys
//! instead of capping scores, with a rotation of its own for the five layers of six that have
//! windows.

use crate::error::Result;
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::graph::Rope;
use crate::model::{Config, HeadNorms, Unwritable, gemma2, rope};

/// What its configurations may leave out.
pub const DEFAULTS: &str = r#"{
    "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208,
    "max_position_embeddings": 131072, "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": true, "query_pre_attn_scalar": 256, "sliding_window": 4096
}"#;

/// Layers from one without a window to the next, where a file does not say.
const INTERVAL: usize = 6;

/// Its name in GGUF, and the layers of its largest model.
const ARCH: &str = "gemma3";
const LARGEST: usize = 62;

/// Bases of the rotations, where a file does not say: of layers without a window, and with one.
const THETA: f64 = 1_000_000.0;
const SLIDING_THETA: f64 = 10_000.0;

/// Its norms, rotations and windows.
pub fn config(json: &JsonFile, config: &mut Config) -> Result<()> {
    gemma2::common(json, config)?;
    config.query_norms = Some(HeadNorms::Shared);
    let interval = match json.opt_usize("sliding_window_pattern")? {
        Some(interval) => interval,
        None => json.opt_usize("_sliding_window_pattern")?.unwrap_or(INTERVAL),
    };
    super::windows(json, config, |layer| interval == 0 || !(layer + 1).is_multiple_of(interval))?;

    let both = json.object("rope_parameters")?;
    let own = |kind: &str| both.as_ref().map_or(Ok(None), |both| both.object(kind));
    let full = match own("full_attention")? {
        Some(full) => Some(full),
        None => json.object("rope_scaling")?,
    };
    let heads = (config.head_dim, config.max_position_embeddings);
    config.rope = rope::one_from_json(json, full.as_ref(), ("rope_theta", THETA), heads)?;
    let (sliding, base) = (own("sliding_attention")?, ("rope_local_base_freq", SLIDING_THETA));
    config.sliding_rope = Some(rope::one_from_json(json, sliding.as_ref(), base, heads)?);
    Ok(())
}

/// The same in GGUF.
pub fn gguf(gguf: &Gguf, config: &mut Config) -> Result<()> {
    gemma2::common_in_gguf(gguf, ARCH, config)?;
    config.query_norms = Some(HeadNorms::Shared);
    config.attention_scale = gemma2::usual_scale(config, LARGEST);
    let key = format!("{ARCH}.rope.freq_base_swa");
    let theta = super::positive_in_gguf(gguf, &key)?.unwrap_or(SLIDING_THETA);
    config.sliding_rope = Some(Rope::plain(theta, config.head_dim));
    gemma2::windows_in_gguf(gguf, ARCH, config, 1024, slides)
}

/// Writes what [`gguf`] reads.
pub fn to_gguf(config: &Config, writer: &mut GgufWriter) -> Result<(), Unwritable> {
    if config.attention_cap.is_some() {
        return Err(Unwritable { key: "attn_logit_softcapping", what: "the cap of the scores" });
    }
    if let Some(cap) = config.logits_cap {
        writer.f32("gemma3.final_logit_softcapping", cap);
    }
    let theta = config.sliding_rope.as_ref().map_or(SLIDING_THETA, |rope| rope.theta);
    if config.sliding_rope.as_ref().is_some_and(|rope| *rope != Rope::plain(theta, config.head_dim)) {
        return Err(Unwritable { key: "rope_parameters", what: "this rotation in layers with windows" });
    }
    writer.f32("gemma3.rope.freq_base_swa", theta as f32);
    gemma2::common_to_gguf(config, ARCH, writer, LARGEST, slides)
}

fn slides(layer: usize) -> bool {
    !(layer + 1).is_multiple_of(INTERVAL)
}
