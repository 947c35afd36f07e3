//! The one public error type. Each variant carries the thing it is about, what was
//! expected and found; its doc says what to do. Uses nothing of the rest of the crate.

use std::path::PathBuf;

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Library code never panics on input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable adapter. Install a Vulkan, Metal or DX12 driver, or the software one.
    #[error("no GPU adapter found; {help}")]
    NoAdapter {
        /// How to get an adapter on this system.
        help: String,
    },
    /// `--device` named an adapter that is not there. Choose one of `available`.
    #[error("no device matches '{wanted}'; available: {available}")]
    DeviceNotFound {
        /// What was asked for: an index or a part of a name.
        wanted: String,
        /// The adapters that are there.
        available: String,
    },
    /// The driver dropped the device. Open a new [`Context`](crate::Context) and go on.
    #[error("the device was lost: {reason}")]
    DeviceLost {
        /// The driver's words.
        reason: String,
    },
    /// An allocation does not fit. Lower what `help` names.
    #[error("not enough device memory for {what}: {need} bytes needed, {limit} possible; {help}")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Bytes that it needs.
        need: u64,
        /// Bytes that the device offers for it.
        limit: u64,
        /// The option to change, with a value that would fit where one is known.
        help: String,
    },
    /// The graphics API reported an error. This is a defect of ours or of the driver.
    #[error("graphics API error: {message}")]
    Gpu {
        /// The API's words.
        message: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A safetensors file is damaged or not one. Fetch it again.
    #[error("{}: not a valid safetensors file: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A GGUF file is damaged or not one. Fetch it again.
    #[error("{}: not a valid GGUF file: at byte {at}: {message}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// Offset from the start of the file, in bytes.
        at: u64,
        /// What is wrong there.
        message: String,
    },
    /// A hyperparameter is missing or makes no sense. Mend the file's key.
    #[error("{}: '{key}': {message}", path.display())]
    Config {
        /// The file that holds the key.
        path: PathBuf,
        /// The key, as the file spells it.
        key: String,
        /// Expected and found.
        message: String,
    },
    /// The tokenizer can't be built or used.
    #[error("{}: tokenizer: {message}", path.display())]
    Tokenizer {
        /// The file that it comes from.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The chat template does not parse or fails; `--raw` does without it.
    #[error("chat template: {message}")]
    ChatTemplate {
        /// The template engine's words.
        message: String,
    },
    /// Tensors are missing or have the wrong shape; all of them are listed.
    #[error("{}: {} tensor(s) can not be used:\n  {}", path.display(), problems.len(), problems.join("\n  "))]
    Tensors {
        /// The model.
        path: PathBuf,
        /// One line a tensor: name, expected, found.
        problems: Vec<String>,
    },
    /// A tensor is stored in a format that this version can't use. Convert the file.
    #[error("tensor '{name}' is stored as {format}, which is not supported; supported: {supported}")]
    UnsupportedFormat {
        /// The tensor.
        name: String,
        /// The format's name, or its number where it has none.
        format: String,
        /// What is supported.
        supported: String,
    },
    /// The architecture is not one that this version knows.
    #[error("model_type '{model_type}' is not supported; supported: {supported}")]
    UnsupportedModel {
        /// What the file names.
        model_type: String,
        /// What is supported.
        supported: String,
    },
    /// Shapes do not fit together; raised when a graph is built, never in a dispatch.
    #[error("{op}: {message}")]
    Shape {
        /// The operation.
        op: String,
        /// Expected and found.
        message: String,
    },
    /// A shader did not become a pipeline. Please report it with the driver's version.
    #[error("kernel {variant} did not compile: {message}")]
    Pipeline {
        /// The kernel and its variant.
        variant: String,
        /// The compiler's words.
        message: String,
    },
    /// A kernel computed something else than the CPU. Please report it with what `wgllama doctor` prints; with
    /// `--caps baseline` the simplest kernels are used.
    #[error(
        "{variant} computes wrong results on {adapter}: in {launch}, {place} is {found:e}, expected {expected:e} \
         within {allowed:.1e}"
    )]
    WrongResult {
        /// The operation.
        launch: String,
        /// The kernel and its variant.
        variant: String,
        /// The adapter.
        adapter: String,
        /// Which value of the result.
        place: String,
        /// What the device computed.
        found: f64,
        /// What the CPU computed.
        expected: f64,
        /// How far apart they may be.
        allowed: f64,
    },
    /// The prompt is longer than the context. Shorten it or raise `--ctx`.
    #[error("the prompt has {len} tokens, but the context has room for {room}; shorten it or raise --ctx")]
    PromptTooLong {
        /// Tokens in the prompt.
        len: usize,
        /// Tokens that the context can still hold.
        room: usize,
    },
    /// The context is full. Truncate the session or raise `--ctx`.
    #[error("the context of {max} tokens is full")]
    ContextFull {
        /// Tokens that the context holds.
        max: usize,
    },
    /// The model computed something that is no number: its weights are damaged, or a kernel is
    /// wrong on this adapter. Try `--caps baseline`, and please report it.
    #[error("a logit at position {position} is no number")]
    BadLogits {
        /// The position of the token that the model was given.
        position: usize,
    },
    /// An option's value can't be used.
    #[error("{name}: {message}")]
    InvalidOption {
        /// The option.
        name: String,
        /// Expected and found.
        message: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::InvalidOption`].
    pub fn option(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidOption { name: name.into(), message: message.into() }
    }

    /// An [`Error::Shape`].
    pub fn shape(op: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Shape { op: op.into(), message: message.into() }
    }
}
