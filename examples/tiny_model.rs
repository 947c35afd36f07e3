//! Writes a tiny random model from a seed: a folder with config.json, model.safetensors and
//! tokenizer.json in Hugging Face's layout, for tests that must not depend on any download.
//!
//! `cargo run --example tiny_model -- FOLDER`

use std::collections::HashMap;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

/// Sizes of a model; none is a power of two where a model's need not be.
pub struct Tiny {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub tied: bool,
    pub biases: bool,
    pub seed: u64,
}

impl Default for Tiny {
    fn default() -> Self {
        Self {
            hidden: 48,
            intermediate: 100,
            layers: 2,
            heads: 6,
            kv_heads: 2,
            head_dim: 10,
            tied: false,
            biases: true,
            seed: 42,
        }
    }
}

/// Byte-level vocabulary: the 256 bytes as letters, then the two special tokens.
pub const VOCAB: usize = 258;

impl Tiny {
    /// Names and shapes of all tensors.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![("model.embed_tokens".to_string(), vec![VOCAB, self.hidden])];
        for layer in 0..self.layers {
            let matrices = [
                ("self_attn.q_proj", q, self.hidden),
                ("self_attn.k_proj", kv, self.hidden),
                ("self_attn.v_proj", kv, self.hidden),
                ("self_attn.o_proj", self.hidden, q),
                ("mlp.gate_proj", self.intermediate, self.hidden),
                ("mlp.up_proj", self.intermediate, self.hidden),
                ("mlp.down_proj", self.hidden, self.intermediate),
            ];
            for (name, rows, cols) in matrices {
                let stem = format!("model.layers.{layer}.{name}");
                if self.biases {
                    all.push((format!("{stem}.bias"), vec![rows]));
                }
                all.push((stem, vec![rows, cols]));
            }
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                all.push((format!("model.layers.{layer}.{norm}"), vec![self.hidden]));
            }
        }
        all.push(("model.norm".to_string(), vec![self.hidden]));
        if !self.tied {
            all.push(("lm_head".to_string(), vec![VOCAB, self.hidden]));
        }
        for (name, _) in &mut all {
            if !name.ends_with("bias") {
                name.push_str(".weight");
            }
        }
        all
    }

    /// Writes the folder.
    pub fn write(&self, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
        std::fs::create_dir_all(folder)?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": VOCAB,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.biases,
            "mlp_bias": self.biases,
            "bos_token_id": 256,
            "eos_token_id": 257,
        });
        std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config)?)?;
        std::fs::write(folder.join("tokenizer.json"), serde_json::to_string(&tokenizer())?)?;

        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut uniform = move || random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0;
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let len: usize = shape.iter().product();
                let (scale, offset) = match shape.as_slice() {
                    [_, cols] => (1.7 / (*cols as f32).sqrt(), 0.0),
                    _ if name.ends_with("bias") => (0.2, 0.0),
                    _ => (0.3, 1.0),
                };
                let bytes = (0..len).flat_map(|_| (uniform() * scale + offset).to_le_bytes()).collect();
                (name, shape, bytes)
            })
            .collect();
        let mut views = HashMap::new();
        for (name, shape, bytes) in &data {
            views.insert(name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?);
        }
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))?;
        Ok(())
    }
}

/// A byte-level tokenizer with no merges: one token a byte.
fn tokenizer() -> serde_json::Value {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut vocab = serde_json::Map::new();
    let mut next = 256;
    for byte in 0..256u32 {
        // Bytes that do not print stand as letters from U+0100 on, in order.
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocab.insert(char::from_u32(code).unwrap_or(' ').to_string(), byte.into());
    }
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    vocab.insert("<s>".to_string(), 256.into());
    vocab.insert("</s>".to_string(), 257.into());
    let begin = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let sequence = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, sequence],
            "pair": [begin, sequence],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [256], "tokens": ["<s>"] } }
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                   "merges": [] }
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: tiny_model FOLDER")?;
    Tiny::default().write(Path::new(&folder))
}
