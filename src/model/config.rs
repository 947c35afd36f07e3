//! Hyperparameters under Hugging Face's key names, read from a `config.json` of transformers
//! 4 or 5, or from GGUF metadata.

use std::path::Path;

use crate::error::{Error, Result};
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::graph::Rope;
use crate::model::rope;
use crate::nonlinearity::Nonlinearity;
use crate::shape::MOST_EXPERTS;

/// Larger sizes than any model's are refused, so that no product of them overflows.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 12;

/// Hyperparameters of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The architecture.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// Where a layer is normalised.
    pub norms: Norms,
    /// How.
    pub norm_kind: NormKind,
    /// Added to the mean square in normalisation, or to the variance.
    pub norm_eps: f32,
    /// Added to the factors of norms, as files have them.
    pub norm_shift: f32,
    /// The rotation of positions.
    pub rope: Rope,
    /// Another one for layers with a window, if they have one of their own.
    pub sliding_rope: Option<Rope>,
    /// Whether the embedding is the output matrix, too.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Whether the attention's output has a bias.
    pub attention_output_bias: bool,
    /// The function in the feed-forward part.
    pub hidden_act: Nonlinearity,
    /// Whether its result is a gate for a second matrix's.
    pub gated: bool,
    /// Whether the feed-forward matrices have biases.
    pub mlp_bias: bool,
    /// Layers whose q and k do not turn.
    pub unrotated_layers: Vec<usize>,
    /// Positions that the layers below see, if there are such layers: the last ones, with a token's own.
    pub window: Option<usize>,
    /// Layers that see no more than the window.
    pub sliding_layers: Vec<usize>,
    /// The experts that take the place of the feed-forward part, if there are any.
    pub experts: Option<Experts>,
    /// Whether q, k and v are one tensor, and gate and up another.
    pub joined_tensors: bool,
    /// How q and k are normalised, if they are.
    pub query_norms: Option<HeadNorms>,
    /// Whether the feed-forward part reads what attention reads, and not what it leaves.
    pub parallel: bool,
    /// Factor of the embedding.
    pub embedding_scale: f32,
    /// Factor of the scores, if not 1 / sqrt(head_dim).
    pub attention_scale: Option<f32>,
    /// What no score exceeds, if there is a cap.
    pub attention_cap: Option<f32>,
    /// Factor of what layers add to the residual stream.
    pub residual_scale: f32,
    /// Factor of the logits.
    pub logits_scale: f32,
    /// What no logit exceeds, if there is a cap.
    pub logits_cap: Option<f32>,
}

/// Experts: feed-forward parts of which each token chooses a few (Shazeer et al. 2017).
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Those that a token chooses.
    pub chosen: usize,
    /// Width of an expert.
    pub width: usize,
    /// Whether the weights of those chosen are made to sum up to one.
    pub normalised: bool,
    /// Layers that have them.
    pub layers: Vec<usize>,
    /// The module that holds them, and in each of them the gate, the second matrix, and that which
    /// leads back.
    pub modules: [&'static str; 4],
    /// Whether a tensor holds the matrices of all of them.
    pub joined: bool,
}

impl Experts {
    /// Refuses numbers that make no sense; `error` says so of a key.
    pub(super) fn check(&self, error: impl Fn(&str, String) -> Error) -> Result<()> {
        if !(1..=MOST_EXPERTS).contains(&self.count) {
            return Err(error("experts", format!("expected 1 to {MOST_EXPERTS}, found {}", self.count)));
        }
        if !(1..=self.count.min(MOST_CHOSEN)).contains(&self.chosen) {
            let most = self.count.min(MOST_CHOSEN);
            return Err(error("chosen", format!("expected 1 to {most}, found {}", self.chosen)));
        }
        if !(1..=MAX_SIZE).contains(&self.width) {
            return Err(error("width", format!("expected 1 to {MAX_SIZE}, found {}", self.width)));
        }
        Ok(())
    }
}

/// Experts that a token chooses, at most: more than in any model.
const MOST_CHOSEN: usize = 32;

/// Where the two parts of a layer, attention and feed-forward, are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// What they read.
    Before,
    /// What they add to the residual stream.
    After,
    /// Both.
    Both,
}

impl Norms {
    /// Whether what the parts read is normalised.
    pub fn before(self) -> bool {
        self != Self::After
    }

    /// Whether what they add is.
    pub fn after(self) -> bool {
        self != Self::Before
    }
}

/// The factors by which queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorms {
    /// Each head, by the same ones.
    Shared,
    /// Each head, by its own in a tensor of its own.
    Each,
    /// Each head, by its own in one tensor.
    Joined,
    /// All heads together.
    All,
}

/// How rows are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By the root of their mean square.
    Rms,
    /// About their mean, with an offset.
    Layer,
}

impl Config {
    /// Nothing but what a LLaMA does without: no sizes, and nothing that other families have.
    pub(super) fn plain() -> Self {
        Self {
            model_type: "llama".to_string(),
            hidden_size: 0,
            intermediate_size: 0,
            num_hidden_layers: 0,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            vocab_size: 0,
            max_position_embeddings: 0,
            norms: Norms::Before,
            norm_kind: NormKind::Rms,
            norm_eps: 1e-5,
            norm_shift: 0.0,
            rope: Rope::plain(10_000.0, 0),
            sliding_rope: None,
            tie_word_embeddings: false,
            attention_bias: false,
            attention_output_bias: false,
            hidden_act: Nonlinearity::Silu,
            gated: true,
            mlp_bias: false,
            unrotated_layers: Vec::new(),
            window: None,
            sliding_layers: Vec::new(),
            experts: None,
            joined_tensors: false,
            query_norms: None,
            parallel: false,
            embedding_scale: 1.0,
            attention_scale: None,
            attention_cap: None,
            residual_scale: 1.0,
            logits_scale: 1.0,
            logits_cap: None,
        }
    }

    /// Reads a `config.json`.
    pub fn from_json(json: &JsonFile) -> Result<Self> {
        let model_type = json.str("model_type")?.to_string();
        let architecture = super::architecture(&model_type)?;
        let json = &json.with_defaults(architecture.defaults)?;
        let act = match json.opt_str("hidden_activation")? {
            Some(act) => Some(("hidden_activation", act)),
            None => json.opt_str("hidden_act")?.map(|act| ("hidden_act", act)),
        };
        let (key, act) = act.unwrap_or(("hidden_act", "silu"));
        let hidden_act = Nonlinearity::from_name(act).ok_or_else(|| {
            json.error(key, format!("'{act}' is not supported; supported: {}", Nonlinearity::NAMES))
        })?;
        let hidden_size = json.usize("hidden_size")?;
        let heads = json.usize("num_attention_heads")?;
        let head_dim = match json.opt_usize("head_dim")? {
            Some(dim) => dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let message = format!("{heads} heads do not divide hidden_size {hidden_size}");
                return Err(json.error("num_attention_heads", message));
            }
        };
        let positions = json.opt_usize("max_position_embeddings")?.unwrap_or(2048);
        let attention_bias = json.opt_bool("attention_bias")?.unwrap_or(false);
        let mut config = Self {
            model_type,
            hidden_size,
            intermediate_size: json.usize("intermediate_size")?,
            num_hidden_layers: json.usize("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: json.opt_usize("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            vocab_size: json.usize("vocab_size")?,
            max_position_embeddings: positions,
            norm_eps: json.opt_f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: rope::from_json(json, head_dim, positions)?,
            tie_word_embeddings: json.opt_bool("tie_word_embeddings")?.unwrap_or(false),
            attention_bias,
            attention_output_bias: attention_bias,
            hidden_act,
            mlp_bias: json.opt_bool("mlp_bias")?.unwrap_or(false),
            ..Self::plain()
        };
        config.validate(|key, message| json.error(key, message))?;
        (architecture.config)(json, &mut config)?;
        Ok(config)
    }

    /// Reads GGUF metadata; `has` tells whether the file holds a tensor.
    pub fn from_gguf(gguf: &Gguf, vocab_size: usize, has: impl Fn(&str) -> bool) -> Result<Self> {
        let arch = gguf.str("general.architecture")?;
        let architecture = super::architecture_in_gguf(arch)?;
        let key = |name: &str| format!("{arch}.{name}");
        let size = |name: &str| -> Result<usize> {
            let value = gguf.u64(&key(name))?;
            usize::try_from(value).map_err(|_| gguf.error(&key(name), format!("{value} is too large")))
        };
        let optional = |name: &str| -> Result<Option<usize>> {
            Ok(gguf.opt_u64(&key(name))?.and_then(|v| usize::try_from(v).ok()))
        };
        let hidden_size = size("embedding_length")?;
        let heads = size("attention.head_count")?;
        let head_dim = optional("attention.key_length")?.unwrap_or(hidden_size / heads.max(1));
        let positions = optional("context_length")?.unwrap_or(2048);
        let mut config = Self {
            model_type: architecture.model_type.to_string(),
            hidden_size,
            intermediate_size: size("feed_forward_length")?,
            num_hidden_layers: size("block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            vocab_size,
            max_position_embeddings: positions,
            norm_eps: gguf.opt_f32(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5),
            rope: rope::from_gguf(gguf, arch, head_dim, positions)?,
            tie_word_embeddings: !has("output.weight"),
            attention_bias: has("blk.0.attn_q.bias"),
            attention_output_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_gate.bias"),
            ..Self::plain()
        };
        config.validate(|name, message| gguf.error(&gguf_key(arch, name), message))?;
        (architecture.gguf)(gguf, &mut config)?;
        Ok(config)
    }

    /// Writes what [`Self::from_gguf`] reads, and what other engines want besides; answers vectors
    /// that belong into the file. What GGUF has no key for is an error.
    pub fn to_gguf(&self, path: &Path, writer: &mut GgufWriter) -> Result<Vec<(&'static str, Vec<f32>)>> {
        let architecture = super::architecture(&self.model_type)?;
        let arch = architecture.gguf_name;
        let cannot = |key: &str, what: &str| Error::Config {
            path: path.to_path_buf(),
            key: key.to_string(),
            message: format!("GGUF has no key for {what} of '{}'", self.model_type),
        };
        writer.string("general.architecture", arch);
        (architecture.to_gguf)(self, writer).map_err(|Unwritable { key, what }| cannot(key, what))?;
        let sizes = [
            ("max_position_embeddings", self.max_position_embeddings),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.rope.rotated),
            ("vocab_size", self.vocab_size),
        ];
        for (name, size) in sizes {
            writer.u32(&gguf_key(arch, name), u32::try_from(size).unwrap_or(u32::MAX));
        }
        let epsilon = match self.norm_kind {
            NormKind::Rms => "rms_norm_eps",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        writer.f32(&gguf_key(arch, epsilon), self.norm_eps);
        writer.f32(&gguf_key(arch, "rope.freq_base"), self.rope.theta as f32);
        rope::to_gguf(&self.rope, arch, writer)
            .ok_or_else(|| cannot("rope_type", "this scaling of rotations"))
    }

    /// The window, where there are layers that have one and texts that exceed it.
    pub(super) fn used_window(&self) -> Option<usize> {
        self.window.filter(|w| *w < self.max_position_embeddings && !self.sliding_layers.is_empty())
    }

    /// The fewest tensors that a model's files hold, and the fewest weights that its experts have.
    pub(super) fn least(&self) -> (usize, usize) {
        let layers = self.num_hidden_layers;
        // Attention's two, one of the feed-forward part, and a norm.
        let mut tensors = layers.saturating_mul(4);
        if self.query_norms == Some(HeadNorms::Each) {
            let heads = self.num_attention_heads.saturating_add(self.num_key_value_heads);
            tensors = tensors.saturating_add(layers.saturating_mul(heads));
        }
        let Some(experts) = &self.experts else { return (tensors, 0) };
        let matrices = experts.layers.len().saturating_mul(experts.count).saturating_mul(3);
        if !experts.joined {
            tensors = tensors.saturating_add(matrices);
        }
        (tensors, matrices.saturating_mul(experts.width).saturating_mul(self.hidden_size))
    }

    /// Values that one token adds to the cache, over all layers.
    pub fn kv_values_per_token(&self) -> usize {
        2 * self.num_hidden_layers * self.num_key_value_heads * crate::shape::stored_head_dim(self.head_dim)
    }

    fn validate(&self, error: impl Fn(&str, String) -> Error) -> Result<()> {
        let sizes = [
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_SIZE),
            ("num_key_value_heads", self.num_key_value_heads, MAX_SIZE),
            ("vocab_size", self.vocab_size, MAX_SIZE),
            ("max_position_embeddings", self.max_position_embeddings, usize::MAX),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                return Err(error(key, format!("expected 1 to {most}, found {value}")));
            }
        }
        if !(2..=256).contains(&self.head_dim) || !self.head_dim.is_multiple_of(2) {
            return Err(error(
                "head_dim",
                format!("expected an even number up to 256, found {}", self.head_dim),
            ));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let message = format!(
                "expected a divisor of num_attention_heads {}, found {}",
                self.num_attention_heads, self.num_key_value_heads
            );
            return Err(error("num_key_value_heads", message));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            let message = format!("expected a positive number, found {}", self.norm_eps);
            return Err(error("rms_norm_eps", message));
        }
        Ok(())
    }
}

/// What GGUF has no key for, by its key in a `config.json`.
pub struct Unwritable {
    /// The key.
    pub key: &'static str,
    /// What it says.
    pub what: &'static str,
}

/// The GGUF key for one of our names.
fn gguf_key(arch: &str, name: &str) -> String {
    let suffix = match name {
        "hidden_size" => "embedding_length",
        "intermediate_size" => "feed_forward_length",
        "num_hidden_layers" => "block_count",
        "num_attention_heads" => "attention.head_count",
        "num_key_value_heads" => "attention.head_count_kv",
        "head_dim" => "attention.key_length",
        "max_position_embeddings" => "context_length",
        "rms_norm_eps" => "attention.layer_norm_rms_epsilon",
        other => other,
    };
    format!("{arch}.{suffix}")
}
