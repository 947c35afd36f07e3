//! Models: configuration, one file per model_type that builds its graph, names of tensors,
//! weights on the device, and the cache. To add a model: a file here and a line in
//! [`ARCHITECTURES`].

mod config;
mod decoder;
mod files;
mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod grouped;
pub mod kv;
mod lora;
mod mistral;
mod mixtral;
mod names;
mod olmo2;
mod phi3;
pub mod presets;
mod quantize;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;
mod smollm3;
mod stablelm;
mod starcoder2;
pub mod weights;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use config::{Config, Experts, HeadNorms, NormKind, Norms, Unwritable};
pub use files::ModelFiles;
pub use kv::KvCache;
pub use lora::Lora;
pub use quantize::Quantize;
pub use weights::Weights;

use crate::dtype::WeightFormat;
use crate::error::{Error, Result};
use crate::files::{Gguf, GgufWriter, JsonFile};
use crate::gpu::{Buffer, Context};
use crate::graph::{Graph, Rope};
use crate::tokenizer::Tokenizer;

/// A model_type that can be run.
pub struct Architecture {
    /// `model_type` in a config.json.
    pub model_type: &'static str,
    /// `general.architecture` in GGUF.
    pub gguf_name: &'static str,
    /// What the type's `config.json` says beyond the keys that all have.
    pub config: fn(&JsonFile, &mut Config) -> Result<()>,
    /// The same for its GGUF metadata.
    pub gguf: fn(&Gguf, &mut Config) -> Result<()>,
    /// Keys that a `config.json` may leave out, with what they then are, as JSON.
    pub defaults: &'static str,
    /// Writes what [`gguf`](Self::gguf) reads; an error names what GGUF has no key for.
    pub to_gguf: fn(&Config, &mut GgufWriter) -> Result<(), Unwritable>,
    /// Modules whose names in GGUF are not those of `names.rs`, by Hugging Face's names.
    pub modules: &'static [(&'static str, &'static str)],
    /// Whether GGUF files have rows of q and k that turn together side by side.
    pub neighbours: bool,
    /// Builds the graph.
    pub graph: fn(&Config) -> Result<Graph>,
}

const LLAMA: Architecture = Architecture {
    model_type: "llama",
    gguf_name: "llama",
    config: |_, _| Ok(()),
    // The same name stands for Mixtral.
    gguf: mixtral::gguf,
    defaults: "{}",
    to_gguf: plain_gguf,
    modules: &[],
    neighbours: true,
    graph: decoder::graph,
};

/// All model_types.
pub static ARCHITECTURES: [Architecture; 15] = [
    LLAMA,
    Architecture {
        model_type: "gemma",
        gguf_name: "gemma",
        config: gemma::config,
        gguf: gemma::gguf,
        defaults: gemma::DEFAULTS,
        neighbours: false,
        ..LLAMA
    },
    Architecture {
        model_type: "gemma2",
        gguf_name: "gemma2",
        config: gemma2::config,
        gguf: gemma2::gguf,
        defaults: gemma2::DEFAULTS,
        to_gguf: gemma2::to_gguf,
        modules: &gemma2::MODULES,
        neighbours: false,
        ..LLAMA
    },
    Architecture {
        model_type: "gemma3_text",
        gguf_name: "gemma3",
        config: gemma3::config,
        gguf: gemma3::gguf,
        defaults: gemma3::DEFAULTS,
        to_gguf: gemma3::to_gguf,
        modules: &gemma2::MODULES,
        neighbours: false,
        ..LLAMA
    },
    Architecture {
        model_type: "granite",
        gguf_name: "granite",
        config: granite::config,
        defaults: granite::DEFAULTS,
        gguf: granite::gguf,
        to_gguf: granite::to_gguf,
        ..LLAMA
    },
    Architecture { model_type: "mistral", config: mistral::config, defaults: mistral::DEFAULTS, ..LLAMA },
    Architecture {
        model_type: "mixtral",
        config: mixtral::config,
        defaults: mixtral::DEFAULTS,
        to_gguf: mixtral::to_gguf,
        modules: &mixtral::MODULES,
        ..LLAMA
    },
    Architecture {
        model_type: "olmo2",
        gguf_name: "olmo2",
        config: olmo2::config,
        defaults: olmo2::DEFAULTS,
        gguf: olmo2::gguf,
        modules: &olmo2::MODULES,
        neighbours: false,
        ..LLAMA
    },
    Architecture {
        model_type: "phi3",
        gguf_name: "phi3",
        config: phi3::config,
        defaults: phi3::DEFAULTS,
        gguf: phi3::gguf,
        to_gguf: phi3::to_gguf,
        neighbours: false,
        ..LLAMA
    },
    Architecture {
        model_type: "qwen2",
        gguf_name: "qwen2",
        config: qwen2::config,
        defaults: qwen2::DEFAULTS,
        neighbours: false,
        ..LLAMA
    },
    Architecture {
        model_type: "qwen3",
        gguf_name: "qwen3",
        config: qwen3::config,
        defaults: qwen3::DEFAULTS,
        gguf: qwen3::gguf,
        neighbours: false,
        ..LLAMA
    },
    Architecture {
        model_type: "qwen3_moe",
        gguf_name: "qwen3moe",
        config: qwen3_moe::config,
        gguf: qwen3_moe::gguf,
        defaults: qwen3_moe::DEFAULTS,
        to_gguf: qwen3_moe::to_gguf,
        modules: &qwen3_moe::MODULES,
        neighbours: false,
        ..LLAMA
    },
    Architecture {
        model_type: "smollm3",
        gguf_name: "smollm3",
        config: smollm3::config,
        defaults: smollm3::DEFAULTS,
        gguf: smollm3::gguf,
        to_gguf: smollm3::to_gguf,
        ..LLAMA
    },
    Architecture {
        model_type: "stablelm",
        gguf_name: "stablelm",
        config: stablelm::config,
        gguf: stablelm::gguf,
        defaults: stablelm::DEFAULTS,
        to_gguf: stablelm::to_gguf,
        neighbours: false,
        ..LLAMA
    },
    Architecture {
        model_type: "starcoder2",
        gguf_name: "starcoder2",
        config: starcoder2::config,
        gguf: starcoder2::gguf,
        defaults: starcoder2::DEFAULTS,
        modules: &starcoder2::MODULES,
        neighbours: false,
        ..LLAMA
    },
];

/// The architecture of `model_type`.
pub fn architecture(model_type: &str) -> Result<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.model_type == model_type).ok_or_else(|| Error::UnsupportedModel {
        model_type: model_type.to_string(),
        supported: ARCHITECTURES.iter().map(|a| a.model_type).collect::<Vec<_>>().join(", "),
    })
}

/// The architecture that GGUF calls `name`.
pub fn architecture_in_gguf(name: &str) -> Result<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.gguf_name == name).ok_or_else(|| Error::UnsupportedModel {
        model_type: name.to_string(),
        supported: ARCHITECTURES
            .iter()
            .map(|a| a.gguf_name)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// What most families have to write: nothing of their own.
fn plain_gguf(config: &Config, _: &mut GgufWriter) -> Result<(), Unwritable> {
    if config.used_window().is_some() {
        return Err(Unwritable { key: "sliding_window", what: "the windows" });
    }
    if !config.unrotated_layers.is_empty() {
        return Err(Unwritable { key: "no_rope_layers", what: "layers without rotation" });
    }
    Ok(())
}

/// A positive number, if it is there.
fn positive(json: &JsonFile, key: &str) -> Result<Option<f64>> {
    checked(json.opt_f64(key)?, |message| json.error(key, message))
}

/// The same in GGUF.
fn positive_in_gguf(gguf: &Gguf, key: &str) -> Result<Option<f64>> {
    checked(gguf.opt_f32(key)?.map(f64::from), |message| gguf.error(key, message))
}

fn checked(value: Option<f64>, error: impl Fn(String) -> Error) -> Result<Option<f64>> {
    match value {
        Some(v) if !(v.is_finite() && v > 0.0) => {
            Err(error(format!("expected a positive number, found {v}")))
        }
        other => Ok(other),
    }
}

/// What is added to a variance, by the family's own key.
fn epsilon(json: &JsonFile, key: &str) -> Result<f32> {
    Ok(positive(json, key)?.map_or_else(|| json.f64(key), Ok)? as f32)
}

/// The same in GGUF.
fn epsilon_in_gguf(gguf: &Gguf, key: &str) -> Result<f32> {
    positive_in_gguf(gguf, key)?.map_or_else(|| gguf.f32(key), |eps| Ok(eps as f32))
}

/// Reads which layers see only the last `sliding_window` positions: those that `layer_types`
/// names, or else those that `sliding` does.
fn windows(json: &JsonFile, config: &mut Config, sliding: impl Fn(usize) -> bool) -> Result<()> {
    let Some(window) = json.opt_usize("sliding_window")? else { return Ok(()) };
    if window == 0 {
        return Err(json.error("sliding_window", "expected at least 1, found 0"));
    }
    let layers = config.num_hidden_layers;
    let types = json.opt_strs("layer_types")?;
    if let Some(types) = &types {
        if types.len() != layers {
            return Err(json.error("layer_types", format!("expected {layers}, found {}", types.len())));
        }
        if let Some(other) = types.iter().find(|t| !["sliding_attention", "full_attention"].contains(*t)) {
            let message = format!("expected 'sliding_attention' or 'full_attention', found '{other}'");
            return Err(json.error("layer_types", message));
        }
    }
    let slides = |layer: &usize| match &types {
        Some(types) => types[*layer] == "sliding_attention",
        None => sliding(*layer),
    };
    config.window = Some(window);
    config.sliding_layers = (0..layers).filter(slides).collect();
    Ok(())
}

/// How to load a model.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// Hears the bytes loaded and the bytes in all.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
    /// Matrices stored in f32, f16 or bf16 are brought to this format on the way; where their rows
    /// are no whole blocks of it, to one like it ([`quant::fitting`](crate::quant::fitting)).
    pub quantize: Option<WeightFormat>,
    /// What is added to the model's products.
    pub adapters: &'a [Lora],
}

/// A model on a device: immutable, shareable by any number of sessions.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    config: Config,
    graph: Graph,
    weights: Weights,
    tokenizer: Result<Tokenizer, (PathBuf, String)>,
}

impl Model {
    /// Loads a Hugging Face folder or a GGUF file.
    pub fn load(context: &Context, path: impl AsRef<Path>, options: &LoadOptions<'_>) -> Result<Self> {
        let files = ModelFiles::open(path.as_ref())?.with_adapters(options.adapters)?;
        Self::from_files(context, &files, options)
    }

    /// Loads what was opened before, with the adapters that it was given then.
    pub fn from_files(context: &Context, files: &ModelFiles, options: &LoadOptions<'_>) -> Result<Self> {
        let silent = |_, _| {};
        let progress = options.progress.unwrap_or(&silent);
        let weights = Weights::load(context, files, options.quantize, progress)?;
        // A model without a tokenizer can still be given ids.
        let tokenizer = files.tokenizer().map_err(|e| match e {
            Error::Tokenizer { path, message } => (path, message),
            other => (files.path().to_path_buf(), other.to_string()),
        });
        let inner = Inner {
            context: context.clone(),
            config: files.config().clone(),
            graph: files.graph().clone(),
            weights,
            tokenizer,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A model of random weights, for measuring speed without any file.
    pub fn synthetic(context: &Context, config: &Config, format: WeightFormat) -> Result<Self> {
        Self::of_graph(context, config.clone(), (architecture(&config.model_type)?.graph)(config)?, format)
    }

    /// A model of random weights whose graph need not be the one that its configuration means.
    pub(crate) fn of_graph(
        context: &Context,
        config: Config,
        graph: Graph,
        format: WeightFormat,
    ) -> Result<Self> {
        let weights = Weights::random(context, &graph, format)?;
        let tokenizer = Err((PathBuf::from("synthetic"), "a model of random weights has none".to_string()));
        let inner = Inner { context: context.clone(), config, graph, weights, tokenizer };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The device.
    pub fn context(&self) -> &Context {
        &self.inner.context
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.inner.graph
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.inner.weights
    }

    /// The tokenizer; an error that says why there is none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let tokenizer = self.inner.tokenizer.as_ref();
        tokenizer.map_err(|(path, message)| Error::Tokenizer { path: path.clone(), message: message.clone() })
    }

    /// The tables of each of the graph's rotations, for positions below `context`, in texts of that
    /// length.
    pub fn rope_tables(&self, context: usize) -> Result<Vec<Buffer>> {
        let table = |rope: &Rope| {
            let size = size_of_val(&rope.rotations(context).tables(context)[..]) as u64;
            self.inner.context.buffer("the rotations", size, "choose a smaller context")
        };
        let tables = self.inner.graph.ropes.iter().map(table).collect::<Result<Vec<_>>>()?;
        self.turn_by(&tables, context, context);
        Ok(tables)
    }

    /// Fills [`rope_tables`](Self::rope_tables) for texts of `length` positions.
    pub fn turn_by(&self, tables: &[Buffer], length: usize, context: usize) {
        for (rope, buffer) in self.inner.graph.ropes.iter().zip(tables) {
            let table = rope.rotations(length).tables(context);
            self.inner.context.write(buffer, 0, bytemuck::cast_slice(&table));
        }
    }
}
