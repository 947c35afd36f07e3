//! Options that several commands share, and what they stand for.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use wgllama::caps::AdapterKind;
use wgllama::model::{Config, presets};
use wgllama::{
    Activations, Context, ContextOptions, Error, KvFormat, LoadOptions, Lora, Model, ModelFiles, Result,
    SessionOptions, WeightFormat,
};

use super::tell;

/// Which device, and how it is opened.
#[derive(Args)]
pub struct DeviceArgs {
    /// Adapter: an index from `wgllama devices`, a kind (discrete, integrated, cpu) or part of a name
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// For debugging: `baseline` uses no more than WebGPU guarantees everywhere, `gpu` chooses
    /// kernels as for a GPU
    #[arg(long, value_name = "CAPS", value_parser = ["baseline", "gpu"])]
    caps: Option<String>,
    /// The longest that the device may be busy with one submit, in milliseconds: drivers reset a device that
    /// is busy for two seconds, and the screen waits meanwhile
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    longest_submit: u64,
}

impl DeviceArgs {
    /// Opens the device; a CPU gets a notice.
    pub fn open(&self) -> Result<Context> {
        self.open_with(false)
    }

    /// The same, for sessions that take their kernels as they are.
    pub fn open_unchecked(&self) -> Result<Context> {
        self.open_with(true)
    }

    fn open_with(&self, skip_self_check: bool) -> Result<Context> {
        let caps = self.caps.as_deref();
        let options = ContextOptions {
            device: self.device.clone(),
            baseline: caps == Some("baseline"),
            treat_as: (caps == Some("gpu")).then_some(AdapterKind::Discrete),
            pipeline_cache: dirs::cache_dir().map(|d| d.join("wgllama/pipelines")),
            skip_self_check,
            longest_submit: Some(Duration::from_millis(self.longest_submit)),
            ..Default::default()
        };
        let context = Context::new(&options)?;
        if context.caps().kind == AdapterKind::Cpu {
            tell(format_args!(
                "note: {} is a software adapter: this runs on the CPU",
                context.adapter().name
            ));
        }
        Ok(context)
    }
}

/// The cache.
#[derive(Args)]
pub struct CacheArgs {
    /// Tokens that the context holds [default: what the model was trained for, at most 4096]
    #[arg(long, value_name = "TOKENS")]
    pub ctx: Option<usize>,
    /// Format of cached keys and values: q8_0 takes half the memory of f16, q4_0 a quarter, and
    /// texts get worse
    #[arg(long, value_name = "FORMAT", default_value = "f16", value_parser = KvFormat::ALL.map(KvFormat::name))]
    kv: String,
    /// How activations meet weights: as they are (f32), both rounded to 16 bits where matrix units
    /// multiply them (f16), or those of few tokens to 8 bits on GPUs (int8)
    #[arg(long, value_name = "FORMAT", default_value = "f16", value_parser = Activations::ALL.map(Activations::name))]
    activations: String,
}

impl CacheArgs {
    /// A session with these.
    pub fn session(&self) -> Result<SessionOptions> {
        let (kv, activations) = (self.kv.parse()?, self.activations.parse()?);
        Ok(SessionOptions { context: self.ctx, kv, activations, ..Default::default() })
    }
}

/// Where `make demo` puts the default model, below the user's cache directory.
const DEFAULT_MODEL: &str = "wgllama/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The default model; an error that says how to get it.
pub fn default_model() -> Result<PathBuf> {
    let path = dirs::cache_dir().unwrap_or_default().join(DEFAULT_MODEL);
    if path.exists() {
        return Ok(path);
    }
    let message = format!(
        "none was named and the default one is not at {}; `make demo` fetches it, or name a GGUF file or a folder",
        path.display()
    );
    Err(Error::InvalidOption { name: "MODEL".to_string(), message })
}

/// The preset and the format that `NAME:FORMAT` stands for.
pub fn synthetic(text: &str) -> Result<(Config, WeightFormat)> {
    let Some((name, format)) = text.split_once(':') else {
        let message =
            format!("expected NAME:FORMAT with one of {}, found '{text}'", presets::names().join(", "));
        return Err(Error::option("synthetic", message));
    };
    Ok((Config::preset(name)?, format.parse()?))
}

/// Whether `path` looks like a model and not like a prompt.
pub fn is_model(path: &str) -> bool {
    Path::new(path).exists() || path.ends_with(".gguf") || path.ends_with(".safetensors")
}

/// The prompt; `-` stands for standard input.
pub fn prompt(text: &str) -> Result<String> {
    if text != "-" {
        return Ok(text.to_string());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| Error::io("standard input", e))?;
    String::from_utf8(bytes).map_err(|e| Error::option("prompt", format!("standard input is not UTF-8: {e}")))
}

/// The formats of weights that an option takes.
pub fn formats() -> [&'static str; WeightFormat::ALL.len()] {
    WeightFormat::ALL.map(WeightFormat::name)
}

/// A bar on a terminal, and nothing elsewhere.
pub fn progress_bar(template: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// How a model is loaded.
#[derive(Args)]
pub struct LoadArgs {
    /// Quantise weights stored in f32, f16 or bf16 while they are loaded [example: q4_k]
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    quantize: Option<String>,
    /// A folder of PEFT with a LoRA adapter, and what it is taken times; several are added up
    #[arg(long, value_name = "DIR[:SCALE]")]
    lora: Vec<String>,
}

impl LoadArgs {
    /// Opens a model with its adapters.
    pub fn open(&self, path: &Path) -> Result<ModelFiles> {
        let adapter = |text: &String| {
            let scaled = text.rsplit_once(':').and_then(|(dir, scale)| Some((dir, scale.parse().ok()?)));
            let (dir, scale) = scaled.unwrap_or((text, 1.0));
            Lora::open(Path::new(dir), scale)
        };
        let adapters = self.lora.iter().map(adapter).collect::<Result<Vec<_>>>()?;
        ModelFiles::open(path)?.with_adapters(&adapters)
    }

    /// Loads a model and says how long it took, in seconds; a bar shows progress on a terminal.
    pub fn load(&self, context: &Context, files: &ModelFiles) -> Result<(Model, f64)> {
        let start = Instant::now();
        let bar = progress_bar("loading {wide_bar} {bytes}/{total_bytes}");
        let progress = |done: u64, total: u64| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let quantize = self.quantize.as_deref().map(str::parse).transpose()?;
        let options = LoadOptions { progress: Some(&progress), quantize, ..Default::default() };
        let model = Model::from_files(context, files, &options)?;
        bar.finish_and_clear();
        Ok((model, start.elapsed().as_secs_f64()))
    }
}
