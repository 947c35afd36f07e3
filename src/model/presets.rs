//! Configurations by name: every size of the LLaMA (Touvron et al. 2023a) and Llama 2 (2023b)
//! papers, and a few others that are often run.

use crate::error::{Error, Result};
use crate::graph::Rope;
use crate::model::{Config, Experts, HeadNorms, mixtral, qwen3_moe};

struct Preset {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    context: usize,
    theta: f64,
    tied: bool,
    /// Values in a head, where they are not the stream's shared out.
    head_dim: usize,
    /// Experts of a layer, those that a token chooses, and their width.
    experts: Option<(usize, usize, usize)>,
}

const LLAMA: Preset = Preset {
    name: "llama-7b",
    hidden: 4096,
    intermediate: 11008,
    layers: 32,
    heads: 32,
    kv_heads: 32,
    vocab: 32000,
    context: 2048,
    theta: 10_000.0,
    tied: false,
    head_dim: 0,
    experts: None,
};
const B13: Preset = Preset {
    name: "llama-13b",
    hidden: 5120,
    intermediate: 13824,
    layers: 40,
    heads: 40,
    kv_heads: 40,
    ..LLAMA
};
const WIDE: Preset = Preset {
    name: "llama-65b",
    hidden: 8192,
    intermediate: 22016,
    layers: 80,
    heads: 64,
    kv_heads: 64,
    ..LLAMA
};

static PRESETS: [Preset; 13] = [
    LLAMA,
    B13,
    Preset {
        name: "llama-33b",
        hidden: 6656,
        intermediate: 17920,
        layers: 60,
        heads: 52,
        kv_heads: 52,
        ..LLAMA
    },
    WIDE,
    Preset { name: "llama-2-7b", context: 4096, ..LLAMA },
    Preset { name: "llama-2-13b", context: 4096, ..B13 },
    Preset { name: "llama-2-34b", layers: 48, kv_heads: 8, context: 4096, ..WIDE },
    Preset { name: "llama-2-70b", intermediate: 28672, kv_heads: 8, context: 4096, ..WIDE },
    Preset {
        name: "llama-3-8b",
        intermediate: 14336,
        kv_heads: 8,
        vocab: 128_256,
        context: 8192,
        theta: 500_000.0,
        ..LLAMA
    },
    Preset {
        name: "mixtral-8x7b",
        intermediate: 14336,
        kv_heads: 8,
        context: 32768,
        theta: 1_000_000.0,
        experts: Some((8, 2, 14336)),
        ..LLAMA
    },
    Preset {
        name: "qwen3-30b-a3b",
        hidden: 2048,
        intermediate: 6144,
        layers: 48,
        heads: 32,
        kv_heads: 4,
        vocab: 151_936,
        context: 40960,
        theta: 1_000_000.0,
        head_dim: 128,
        experts: Some((128, 8, 768)),
        ..LLAMA
    },
    Preset { name: "tinyllama-1.1b", hidden: 2048, intermediate: 5632, layers: 22, kv_heads: 4, ..LLAMA },
    Preset {
        name: "smollm2-135m",
        hidden: 576,
        intermediate: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        vocab: 49152,
        context: 8192,
        theta: 100_000.0,
        tied: true,
        ..LLAMA
    },
];

/// The names of all presets.
pub fn names() -> Vec<&'static str> {
    PRESETS.iter().map(|p| p.name).collect()
}

impl Config {
    /// The configuration called `name`.
    pub fn preset(name: &str) -> Result<Self> {
        let preset = PRESETS.iter().find(|p| p.name == name).ok_or_else(|| {
            Error::option("preset", format!("expected one of {}, found '{name}'", names().join(", ")))
        })?;
        let head_dim = if preset.head_dim > 0 { preset.head_dim } else { preset.hidden / preset.heads };
        // Qwen's heads are normalised.
        let qwen = preset.name.starts_with("qwen3");
        let experts = preset.experts.map(|(count, chosen, width)| Experts {
            count,
            chosen,
            width,
            normalised: true,
            layers: (0..preset.layers).collect(),
            modules: if qwen { qwen3_moe::EXPERTS } else { mixtral::EXPERTS },
            joined: false,
        });
        let model_type = match (&experts, qwen) {
            (None, _) => "llama",
            (Some(_), true) => "qwen3_moe",
            (Some(_), false) => "mixtral",
        };
        Ok(Self {
            model_type: model_type.to_string(),
            query_norms: qwen.then_some(HeadNorms::Shared),
            experts,
            hidden_size: preset.hidden,
            intermediate_size: preset.intermediate,
            num_hidden_layers: preset.layers,
            num_attention_heads: preset.heads,
            num_key_value_heads: preset.kv_heads,
            head_dim,
            vocab_size: preset.vocab,
            max_position_embeddings: preset.context,
            rope: Rope::plain(preset.theta, head_dim),
            tie_word_embeddings: preset.tied,
            ..Self::plain()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::architecture;

    #[test]
    fn presets_have_the_sizes_that_they_are_named_after() {
        // Parameters in billions, as the papers and model cards state them.
        let stated = [6.7, 13.0, 32.5, 65.2, 6.7, 13.0, 34.0, 69.0, 8.03, 46.7, 30.5, 1.1, 0.1345];
        for (name, stated) in names().into_iter().zip(stated) {
            let config = Config::preset(name).unwrap();
            let graph = (architecture(&config.model_type).unwrap().graph)(&config).unwrap();
            let values: usize = graph.weights.iter().map(|w| w.rows * w.cols).sum();
            let billions = values as f64 / 1e9;
            assert!((billions / stated - 1.0).abs() < 0.02, "{name}: {billions}");
        }
    }

    #[test]
    fn an_unknown_preset_lists_the_known_ones() {
        let error = Config::preset("llama-9b").unwrap_err().to_string();
        assert!(error.contains("llama-2-70b") && error.contains("'llama-9b'"), "{error}");
    }
}
